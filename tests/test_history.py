"""What is said of runs from what they wrote, alive or not."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from cpt_launcher import history, record
from cpt_launcher.layout import Layout

from .conftest import Outcome
from .test_checkpoints import save

Cpt = Callable[..., Outcome]


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    layout = Layout(tmp_path / "storage", "first")
    (layout.run_dir / "cpt").mkdir(parents=True)
    return layout


def write(layout: Layout, **facts: object) -> None:
    me = os.getpid()
    known = {
        "run": layout.run, "state": "running", "host": socket.gethostname(), "pid": me,
        "pid_started": record._started(me), "started": "2026-11-23T10:00:00+00:00", "user": "me", "workers": 2,
        "output": str(layout.output), "checkpoints": "marked",
    }  # fmt: skip
    layout.run_json.write_text(json.dumps({**known, **facts}))


def step(number: int, loss: float = 2.0) -> dict[str, object]:
    return {"event": "step", "step": number, "total": 40, "loss": loss, "tokens_per_second": 3000.0, "seconds_left": 65}


def test_a_running_state_is_checked_against_the_process(layout: Layout) -> None:
    def state(**facts: object) -> object:
        write(layout, **facts)
        return (record.read(layout) or {})["state"]

    assert state() == "running"
    assert state(pid=2**22 + 1) == "lost"
    assert state(pid_started="another boot:1") == "lost"
    assert state(state="finished", pid=2**22 + 1) == "finished"


def test_from_another_machine_the_heartbeat_decides(layout: Layout) -> None:
    write(layout, host="elsewhere")
    layout.heartbeat.touch()
    assert history.load(layout).state == "running"
    long_ago = time.time() - 1000
    os.utime(layout.heartbeat, (long_ago, long_ago))
    assert history.load(layout).state == "lost"


def test_status_and_runs(cpt: Cpt, layout: Layout) -> None:
    write(layout, restarts=[{"cause": "x"}])
    (Layout(layout.storage, "broken").run_dir / "cpt").mkdir(parents=True)
    Layout(layout.storage, "broken").run_json.write_text("{")
    events = [
        {"event": "phase", "phase": "loading the model"}, step(10, 5.0), step(20, 4.0),
        {"event": "phase", "phase": "x"}, {"event": "checkpoint", "step": 20, "bytes": 2_000_000}, step(15, 4.5),
    ]  # fmt: skip
    layout.events.write_text("".join(json.dumps(event) + "\n" for event in events) + '{"event": "st')
    run = history.load(layout)
    assert [event["step"] for event in run.steps] == [10, 15]
    done = cpt("status", layout.run_dir)
    assert done.out == (
        "Run first: running, training\n"
        "  step         15/40\n"
        "  loss         5.0000 -> 4.5000\n"
        "  tokens/s     3,000 (1,500 per worker)\n"
        "  left         0:01:05\n"
        "  checkpoint   step 20 (2.0 MB)\n"
        "  restarts     1\n"
        f"  started      2026-11-23T10:00:00+00:00 on {socket.gethostname()} by me\n"
        f"  folder       {layout.run_dir}\n"
    )
    table = cpt("runs", "--storage", layout.storage).out.splitlines()
    assert [line.split()[:4] for line in table] == [
        ["RUN", "STATE", "STEP", "LOSS"],
        ["first", "running", "15/40", "4.5000"],
    ]
    assert json.loads(cpt("status", "first", "--storage", layout.storage, "--json").out)["last_step"]["step"] == 15


def test_a_run_is_found_by_folder_config_and_name(
    cpt: Cpt, workspace: Path, stand_in: Callable[[], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cpt("run", "my.yaml").code == 0
    for words in (("my.yaml",), ("first", "--storage", "storage"), ("storage/first",)):
        assert cpt("status", *words).out.startswith("Run first: finished\n")
    monkeypatch.setenv("CPT_STORAGE", str(workspace / "storage"))
    assert cpt("status", "first").code == 0
    unknown = cpt("status", "second")
    assert (unknown.code, "runs there: first" in unknown.err) == (2, True)
    monkeypatch.delenv("CPT_STORAGE")
    assert (cpt("runs").code, cpt("runs", "--storage", "absent").code) == (2, 2)


def test_logs(cpt: Cpt, workspace: Path, stand_in: Callable[[], object]) -> None:
    assert cpt("run", "my.yaml").code == 0
    assert cpt("logs", "my.yaml", "-n", "1").out == "(RayTrainWorker pid=1) the token is <HF_TOKEN>\n"
    assert len(cpt("logs", "my.yaml", "-f").out.splitlines()) == 2


def test_checkpoints(cpt: Cpt, layout: Layout) -> None:
    write(layout, state="failed")
    save(layout.output, 10, loss=4.25)
    (save(layout.output, 20) / "rng_state_1.pth").unlink()
    done = cpt("checkpoints", layout.run_dir)
    assert [line.split("  ")[0].strip() for line in done.out.splitlines()] == ["STEP", "10", "20"]
    assert "with 2 workers, ZeRO-3" in done.out
    assert "no: rng_state_1.pth is missing" in done.out
    rows = json.loads(cpt("checkpoints", layout.run_dir, "--json").out)
    assert [(row["step"], row["complete"], row["resumable"]) for row in rows] == [(10, True, True), (20, False, False)]


def test_run_json_holds_what_it_takes_to_do_it_again(cpt: Cpt, workspace: Path, stand_in: Callable[[], object]) -> None:
    assert cpt("run", "my.yaml", "train.cutoff_len=64").code == 0
    known = json.loads((workspace / "storage" / "first" / "cpt" / "run.json").read_text())
    assert known["config_text"] == (workspace / "my.yaml").read_text()
    assert known["checkpoints"] == "marked"
    assert known["tokens_per_step"] == 64 * 8
    assert set(known["data"]) == {"corpus.jsonl", "ds_z3_config.json"}
    assert known["versions"]["cpt-launcher"]
    events = [
        json.loads(line) for line in (workspace / "storage" / "first" / "cpt" / "events.jsonl").read_text().splitlines()
    ]
    assert [(event["event"], event.get("step")) for event in events] == [("step", 1), ("step", 2), ("end", 2)]
