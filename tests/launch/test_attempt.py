"""What the training process is given, with the stand-in for llamafactory-cli."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from cpt_launcher import child
from cpt_launcher.launch import cluster

from ..conftest import Outcome

Cpt = Callable[..., Outcome]
Called = Callable[[], dict[str, object]]
SKIP = ("--skip-preflight", "stack", "--skip-preflight", "cluster")


@pytest.fixture
def given(
    cpt: Cpt, workspace: Path, stand_in: Called, monkeypatch: pytest.MonkeyPatch
) -> Callable[[], tuple[str, dict]]:
    """Runs the config; its working directory and environment. No cluster of this machine's own is near."""
    monkeypatch.setenv("RAY_TMPDIR", str(workspace))

    def call() -> tuple[str, dict[str, str]]:
        done = cpt("run", "my.yaml", "--raw", *SKIP)
        assert done.code == 0, done.err
        called = stand_in()
        assert isinstance(called["env"], dict)
        return str(called["cwd"]), called["env"]

    return call


def test_where_it_starts_ray_itself_all_is_on_loopback(given: Callable[[], tuple[str, dict[str, str]]]) -> None:
    folder, env = given()
    assert folder == str(child.FOLDER)
    expected = cluster.HOME | cluster.COLLECTIVES
    assert {name: env.get(name) for name in expected} == expected


def test_the_cluster_that_was_found_is_handed_on(
    given: Callable[[], tuple[str, dict[str, str]]], workspace: Path
) -> None:
    (workspace / "ray").mkdir()
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        (workspace / "ray" / "ray_current_cluster").write_text(address)
        _, env = given()
    found = {name: env[name] for name in cluster.HOME | cluster.COLLECTIVES if name in env}
    assert found == {"RAY_ADDRESS": address}


def test_a_program_that_is_found_by_a_relative_path(
    given: Callable[[], tuple[str, dict[str, str]]], workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (workspace / "bin").mkdir()
    program = shutil.which("llamafactory-cli")
    assert program
    shutil.copy(program, workspace / "bin")
    monkeypatch.setenv("PATH", f"bin{os.pathsep}{os.environ['PATH']}")
    assert given()[0] == str(child.FOLDER)
