"""A compilation that was ended half-way is found and, where it was this run's own, cleared away."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from cpt_launcher.launch import build_lock, preflight

from ..conftest import Outcome
from .test_preflight import plan


@pytest.fixture
def lock(tmp_path: Path) -> Path:
    """Left an hour ago."""
    lock = tmp_path / "deepspeed_shm_comm" / "lock"
    lock.parent.mkdir()
    lock.touch()
    age(lock, 3600)
    return lock


def age(path: Path, seconds: float) -> None:
    os.utime(path, (time.time() - seconds,) * 2)


def test_where_torch_has_them(tmp_path: Path, lock: Path) -> None:
    version = f"py{sys.version_info.major}{sys.version_info.minor}{sys.abiflags}"
    for name in (f"{version}_cpu", f"{version}_cu130", "py27_cpu"):
        (tmp_path / ".cache" / "torch_extensions" / name / "deepspeed_shm_comm").mkdir(parents=True)
        (tmp_path / ".cache" / "torch_extensions" / name / "deepspeed_shm_comm" / "lock").touch()
    assert build_lock.there({"TORCH_EXTENSIONS_DIR": str(tmp_path)}) == {lock}
    for known in ({"HOME": str(tmp_path)}, {"HOME": "/absent", "XDG_CACHE_HOME": str(tmp_path / ".cache")}):
        assert {path.parts[-3] for path in build_lock.there(known)} == {f"{version}_cpu", f"{version}_cu130"}


def test_one_that_is_in_use_is_not_left(tmp_path: Path, lock: Path) -> None:
    environ = {"TORCH_EXTENSIONS_DIR": str(tmp_path)}
    assert build_lock.left(environ) == [lock]
    with lock.open("rb"):
        assert build_lock.left(environ) == []
    made = lock.with_name("shm.o")
    made.touch()  # on another machine it is compiled
    assert build_lock.left(environ) == []
    age(made, 3000)
    assert build_lock.left(environ) == [lock]


def test_preflight_says_what_to_remove(tmp_path: Path, lock: Path) -> None:
    (tmp_path / "c++").touch(mode=0o755)
    environ = {"PATH": str(tmp_path), "TORCH_EXTENSIONS_DIR": str(tmp_path)}
    (problem,) = preflight.compiler_present(plan("cpu"), environ)
    assert (problem.where, problem.hint) == (str(lock), f"rm {lock}")
    assert preflight.compiler_present(plan("gpu"), environ) == []
    lock.unlink()
    assert preflight.compiler_present(plan("cpu"), environ) == []


def test_a_run_leaves_none_of_its_own(
    cpt: Callable[..., Outcome],
    workspace: Path,
    stand_in: Callable[[], object],
    lock: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("STAND_IN_MODE", "compile")
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(workspace / "extensions"))
    done = cpt("run", "my.yaml", "--retries", "0")
    own = workspace / "extensions" / "deepspeed_shm_comm" / "lock"
    assert (done.code, own.exists()) == (1, False)
    assert f"removed {own}: its compilation was ended half-way" in done.err
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(lock.parents[1]))
    assert cpt("run", "my.yaml", "--retries", "0").code == 1
    assert lock.exists()  # it was there before: somebody else's
