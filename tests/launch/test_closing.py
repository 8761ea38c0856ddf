"""A run always ends: whatever fails while it is closed, its record says how the training ended."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cpt_launcher import disk
from cpt_launcher.errors import Problem, StorageError
from cpt_launcher.launch import tracking
from cpt_launcher.layout import Layout
from cpt_launcher.runs import export, history, plots, results

from ..conftest import Outcome

Cpt = Callable[..., Outcome]
Called = Callable[[], dict[str, object]]


def record(workspace: Path) -> dict[str, object]:
    return dict(json.loads((workspace / "storage" / "first" / "cpt" / "run.json").read_text()))


def fails(*_: object, **__: object) -> object:
    raise StorageError(Problem("cannot write: Stale file handle"))


def test_a_failed_run_leaves_its_output_where_it_is(
    cpt: Cpt, workspace: Path, stand_in: Called, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STAND_IN_MODE", "unsaved")
    monkeypatch.setattr(disk, "set_aside", fails)
    done = cpt("run", "my.yaml")
    run = workspace / "storage" / "first"
    assert done.code == 1
    assert "training failed: ValueError: the inner cause" in done.err
    assert f"no checkpoint was saved: `cpt resume {run}` starts over" in done.err
    assert "earlier attempt" not in done.err
    assert (run / "output" / "trainer_log.jsonl").is_file()
    known = record(workspace)
    assert (known["state"], known["exit_code"], known["cause"]) == ("failed", 1, "ValueError: the inner cause")
    assert known["output"] == str(run / "output")
    assert (run / "cpt" / "loss.png").is_file()


def test_room_that_cannot_be_made_for_another_try_does_not_hide_the_failure(
    cpt: Cpt, workspace: Path, stand_in: Called, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STAND_IN_MODE", "unsaved")
    monkeypatch.setattr(disk, "set_aside", fails)
    done = cpt("run", "my.yaml", "--retries", "3")
    assert done.code == 1
    assert "warning: no room is made for another try: cannot write: Stale file handle" in done.err
    assert "training failed: ValueError: the inner cause" in done.err
    assert (record(workspace)["state"], record(workspace)["cause"]) == ("failed", "ValueError: the inner cause")


@pytest.fixture
def small_storage(workspace: Path) -> Iterator[Path]:
    storage = workspace / "storage"
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", storage], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"no tmpfs can be mounted here: {mounted.stderr.decode()}")
    yield storage
    subprocess.run(["umount", storage], check=True)


def test_a_full_disk_takes_the_record(
    cpt: Cpt, workspace: Path, small_storage: Path, stand_in: Called, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STAND_IN_MODE", "fill")
    done = cpt("run", "my.yaml")
    assert done.code == 1
    known = record(workspace)
    assert (known["state"], known["exit_code"], known["cause"]) == ("failed", 1, "ValueError: the inner cause")
    assert not (small_storage / "first" / "cpt" / ".reserve").exists()


def test_a_bug_is_recorded_and_keeps_its_traceback(
    cpt: Cpt, workspace: Path, stand_in: Called, monkeypatch: pytest.MonkeyPatch
) -> None:
    def bug(*_: object) -> bool:
        raise RuntimeError("of ours")

    monkeypatch.setattr(results, "trained_since", bug)
    with pytest.raises(RuntimeError, match="of ours"):
        cpt("run", "my.yaml")
    known = record(workspace)
    assert (known["state"], known["exit_code"], known["cause"]) == ("failed", 1, "RuntimeError: of ours")


def test_neither_plot_nor_tracker_change_how_a_run_ended(
    cpt: Cpt, workspace: Path, stand_in: Called, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended: list[object] = []

    def no_plot(_: object) -> bytes:
        raise ValueError("odd figures")

    def finish(_env: object, run_id: str, state: str, *_: object) -> None:
        ended.append((run_id, state))
        raise OSError("gone")

    monkeypatch.setattr(plots, "png", no_plot)
    monkeypatch.setattr(tracking, "reach", lambda *_: None)
    monkeypatch.setattr(tracking, "begin", lambda *_: "abc")
    monkeypatch.setattr(tracking, "finish", finish)
    done = cpt("run", "my.yaml", "tracking={mlflow: {}}", "--skip-preflight", "tracker")
    assert done.code == 0, done.err
    assert "warning: no loss plot (ValueError: odd figures)" in done.err
    assert "warning: MLflow did not take the run's end (OSError: gone)" in done.err
    assert ended == [("abc", "finished")]
    assert (record(workspace)["state"], record(workspace)["mlflow_run"]) == ("finished", "abc")


def test_an_end_that_cannot_be_written_is_a_warning(
    cpt: Cpt, workspace: Path, stand_in: Called, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cpt_launcher.runs.record.end", fails)
    monkeypatch.setenv("STAND_IN_MODE", "fail")
    done = cpt("run", "my.yaml")
    assert done.code == 1
    assert "warning: run.json does not say how it ended (cannot write: Stale file handle)" in done.err
    assert "training failed: ValueError: the inner cause" in done.err


def test_the_evaluation_after_the_training_is_an_event(
    cpt: Cpt, workspace: Path, stand_in: Called, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[history.Run] = []
    layout = Layout(workspace / "storage", "first")
    layout.events.parent.mkdir(parents=True)
    layout.events.write_text('{"event": "eval", "step": 0, "loss": 1.5}\n')
    monkeypatch.setattr(plots, "png", drawn.append)
    monkeypatch.setenv("STAND_IN_LAST_STEP", "3")
    assert cpt("run", "my.yaml").code == 0
    events = [json.loads(line) for line in layout.events.read_text().splitlines()]
    assert [(event["event"], event.get("step")) for event in events[-2:]] == [("eval", 3), ("end", 3)]
    assert [(event["step"], event["loss"]) for event in drawn[0].evals] == [(0, 1.5), (3, 1.25)]
    run = history.load(layout)
    assert export.choose(run, "best").step == 3
    assert "; trained: loss 1.2500" in cpt("status", layout.run_dir).out
    (layout.output / "config.json").touch()
    (layout.output / "model.safetensors").touch()
    assert export.choose(run, "last").step == 3


def test_a_step_that_was_evaluated_is_no_event_again(
    cpt: Cpt, workspace: Path, stand_in: Called, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout = Layout(workspace / "storage", "first")
    layout.events.parent.mkdir(parents=True)
    layout.events.write_text('{"event": "eval", "step": 3, "loss": 1.5}\n')
    monkeypatch.setenv("STAND_IN_LAST_STEP", "3")
    assert cpt("run", "my.yaml").code == 0
    assert [event["loss"] for event in history.load(layout).evals] == [1.5]


def test_an_evaluation_of_an_earlier_training_is_no_event(tmp_path: Path) -> None:
    found = tmp_path / "eval_results.json"
    assert results.evaluated_since(tmp_path, 0) is None
    found.write_text('{"eval_loss": 1.25}')
    assert results.evaluated_since(tmp_path, time.time() - 5) == 1.25
    os.utime(found, (1000, 1000))
    assert results.evaluated_since(tmp_path, 2000) is None
