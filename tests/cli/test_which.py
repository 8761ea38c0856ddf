"""What is said where a command's RUN is no run, or its storage is a file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from ..conftest import Outcome

Cpt = Callable[..., Outcome]


@pytest.fixture
def store(workspace: Path) -> Path:
    """A storage in the working directory with two runs."""
    for name in ("tiny_cpu", "other"):
        (workspace / "store" / name / "cpt").mkdir(parents=True)
        (workspace / "store" / name / "output").mkdir()
        (workspace / "store" / name / "cpt" / "run.json").write_text(f'{{"run": "{name}", "state": "failed"}}')
    return workspace / "store"


@pytest.mark.parametrize("command", ["status", "logs", "checkpoints", "eval", "resume", "export --to out"])
@pytest.mark.parametrize(
    ("run", "what", "then"),
    [
        ("store/tiny", "there is no run tiny", "did you mean store/tiny_cpu?"),
        ("store/zzz", "there is no run zzz", "; name one: store/"),
        ("store/tiny_cpu/output", "that is inside a run, and not the run's folder", "name the run: store/tiny_cpu"),
        ("store", "that is a folder with runs, and not a run's", "runs in store: "),
    ],
)
def test_a_path_that_is_no_run(cpt: Cpt, store: Path, command: str, run: str, what: str, then: str) -> None:
    done = cpt(*command.split(), run)
    assert (done.code, done.err.splitlines()[0]) == (2, f"error: {what}")
    assert then in done.err.splitlines()[2]


def test_a_name_alone(cpt: Cpt, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "which storage?" in cpt("status", "nowhere").err
    assert cpt("status", "tiny_cpu", "--storage", "store").code == 0
    done = cpt("status", "tiny", "--storage", "store")
    assert (done.code, "there is no run tiny\n" in done.err) == (2, True)
    monkeypatch.chdir(store)
    assert "did you mean tiny_cpu?" in cpt("status", "tiny").err


def test_a_storage_that_is_a_file(cpt: Cpt, workspace: Path, clean_env: pytest.MonkeyPatch) -> None:
    (workspace / "file").write_text("{}\n")
    for line in (
        "runs --storage file", "status first --storage file", "resume first --storage file", "ui --storage file",
        "stage-data my.yaml --storage file", "stage-data --storage file", "run my.yaml storage=file",
        "run my.yaml storage=file --dry-run", "plan my.yaml storage=file", "fetch-model my.yaml storage=file",
        "tokenize my.yaml storage=file", "job my.yaml storage=file", "demo --storage file",
        "run my.yaml storage=file/below",
    ):  # fmt: skip
        done = cpt(*line.split())
        assert (done.code, done.err.splitlines()[0]) == (5, "error: the storage is a file, not a folder"), line
        assert done.err.splitlines()[1].endswith("file"), line
    clean_env.setenv("CPT_STORAGE", "file")
    assert cpt("runs").code == 5
