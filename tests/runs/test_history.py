"""What is said of runs from what they wrote, alive or not."""

from __future__ import annotations

import json
import os
import re
import socket
import time
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path

import pytest

from cpt_launcher.layout import Layout
from cpt_launcher.runs import history, record

from ..conftest import Outcome
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
    restarts = [
        {"cause": "x", "step": 3, "time": "2026-11-23T09:30:00+00:00"}, "no restart",
        {"cause": "interrupted by SIGINT", "resumed_from": 2, "time": "2026-11-23T10:00:00+00:00"},
    ]  # fmt: skip
    write(layout, first_started="2026-11-23T09:00:00+00:00", restarts=restarts)
    (Layout(layout.storage, "broken").run_dir / "cpt").mkdir(parents=True)
    Layout(layout.storage, "broken").run_json.write_text("{")
    events = [
        {"event": "phase", "phase": "loading the model"}, step(10, 5.0), step(20, 4.0),
        {"event": "phase", "phase": "x"}, {"event": "checkpoint", "step": 20, "bytes": 2_000_000}, step(15, 4.5),
    ]  # fmt: skip
    layout.events.write_text("".join(json.dumps(event) + "\n" for event in events) + '{"event": "st')
    save(layout.output, 20)
    save(layout.output, 30, marked=False)
    run = history.load(layout)
    assert [event["step"] for event in run.steps] == [10, 15]
    done = cpt("status", layout.run_dir)
    assert done.out == (
        "Run first: running, training\n"
        "  step         15/40\n"
        "  loss         5.0000 -> 4.5000\n"
        "  tokens/s     3,000 (1,500 per worker)\n"
        "  left         0:01:05\n"
        "  checkpoint   step 20 (2.0 kB)\n"
        f"  started      2026-11-23T09:00:00+00:00 on {socket.gethostname()} by me\n"
        "  restarts     2, the last 2026-11-23T10:00:00+00:00\n"
        "    x (at step 3)\n"
        "    interrupted by SIGINT (resumed from step 2)\n"
        f"  folder       {layout.run_dir}\n"
    )
    table = cpt("runs", "--storage", layout.storage).out.splitlines()
    assert [line.split()[:4] for line in table] == [
        ["RUN", "STATE", "STEP", "LOSS"],
        ["first", "running", "15/40", "4.5000"],
        ["broken", "unreadable", "-", "-"],
    ]
    assert json.loads(cpt("status", "first", "--storage", layout.storage, "--json").out)["last_step"]["step"] == 15


def test_status_names_the_checkpoint_that_is_resumed_from(cpt: Cpt, layout: Layout) -> None:
    def said() -> tuple[str, object]:
        text = cpt("status", layout.run_dir).out
        of = json.loads(cpt("status", layout.run_dir, "--json").out)["saved"]
        return "".join(line for line in text.splitlines(True) if "heckpoint" in line or "incomplete" in line), of

    write(layout, state="failed")
    event = {"event": "checkpoint", "step": 30, "bytes": 5}
    layout.events.write_text(json.dumps(event) + "\n")
    assert said() == ("  checkpoint   step 30 is gone\n", None)
    for number in (20, 30):
        save(layout.output, number)
    assert (said()[0].startswith("  checkpoint   step 30 ("), said()[1]) == (True, event)
    (layout.output / "checkpoint-30" / "rng_state_1.pth").unlink()
    text, saved = said()
    assert text.partition("\n")[0].startswith("  checkpoint   step 20 (")
    assert text.endswith("\n  incomplete   step 30: rng_state_1.pth is missing\n")
    assert isinstance(saved, dict)
    assert (saved["step"], saved["path"]) == (20, str(layout.output / "checkpoint-20"))


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
    assert (cpt("runs").code, cpt("runs", "--storage", "absent").code) == (2, 5)


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
    assert done.out.split("\n")[0].split()[:5] == ["STEP", "TRAIN", "LOSS", "HELD", "OUT"]
    assert done.out.split("\n")[1].split()[:3] == ["10", "4.2500", "-"]
    layout.events.write_text(json.dumps({"event": "eval", "step": 10, "loss": 3.5}) + "\n")
    assert cpt("checkpoints", layout.run_dir).out.split("\n")[1].split()[:3] == ["10", "4.2500", "3.5000"]
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
    seen = [(event["event"], event.get("step", event.get("phase"))) for event in events]
    assert seen == [("phase", "starting Ray"), ("step", 1), ("step", 2), ("end", 2)]


def test_status_of_an_evaluation(cpt: Cpt, layout: Layout) -> None:
    write(layout)
    base = {"event": "phase", "phase": "evaluating the base model"}
    told = {**base, "time": time.time() - 3, "done": 19, "of": 41, "seconds_left": 100}

    def first_line(*events: dict[str, object]) -> str:
        layout.events.write_text("".join(json.dumps(event) + "\n" for event in events))
        return cpt("status", layout.run_dir).out.splitlines()[0]

    assert first_line(base) == "Run first: running, evaluating the base model"
    assert re.fullmatch(r"Run first: running, evaluating the base model 19/41, 0:01:3\d left", first_line(base, told))
    assert json.loads(cpt("status", layout.run_dir, "--json").out)["evaluating"]["done"] == 19
    assert first_line(base, told, {"event": "eval", "step": 0, "loss": 7.7, "phase": "training"}).endswith("training")
    late = {**step(20), "phase": "evaluating"}
    assert first_line(step(10), {"event": "phase", "phase": "evaluating"}, late).endswith("running, evaluating")
    assert first_line(base, told, {"event": "phase", "phase": "starting Ray"}).endswith("running, starting Ray")


def test_status_names_evaluations_as_the_run_does(cpt: Cpt, layout: Layout) -> None:
    def said(state: str, *steps: int) -> str:
        write(layout, state=state)
        evals = [{"event": "eval", "step": at, "loss": 1.0} for at in steps]
        layout.events.write_text("".join(json.dumps(event) + "\n" for event in [step(20), *evals]))
        return next((line for line in cpt("status", layout.run_dir).out.splitlines() if "held out" in line), "")

    loss = "loss 1.0000, perplexity 2.72"
    assert said("finished", 0, 20) == f"  held out     base model: {loss}; trained: {loss}"
    assert said("failed", 0, 10, 20) == f"  held out     base model: {loss}; step 20: {loss}"
    assert said("running", 0) == f"  held out     base model: {loss}"
    assert said("running") == ""


def test_the_first_start_and_what_each_restart_came_after(
    cpt: Cpt, workspace: Path, stand_in: Callable[[], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    def known() -> dict[str, object]:
        return dict(json.loads((workspace / "storage" / "first" / "cpt" / "run.json").read_text()))

    monkeypatch.setenv("STAND_IN_MODE", "cut")
    assert cpt("run", "my.yaml", "--skip-preflight", "cluster").code == 1
    first = known()
    assert (first["first_started"], first["restarts"]) == (first["started"], [])
    started = "2026-11-23T09:00:00+00:00"
    (workspace / "storage" / "first" / "cpt" / "run.json").write_text(
        json.dumps({**first, "started": started, "first_started": None})
    )
    monkeypatch.setenv("STAND_IN_MODE", "train")
    assert cpt("resume", "storage/first").code == 0
    again = known()
    assert (again["first_started"], again["started"] == started) == (started, False)
    assert again["restarts"] == [{"time": again["started"], "cause": first["cause"], "resumed_from": 2}]
    assert f"    {first['cause']} (resumed from step 2)\n" in cpt("status", "storage/first").out


def test_what_is_left_gets_less(cpt: Cpt, layout: Layout) -> None:
    write(layout)
    layout.events.write_text(json.dumps({**step(20), "time": time.time() - 25}) + "\n")
    assert re.search(r"  left         0:00:[34]\d\n", cpt("status", layout.run_dir).out)


def test_what_a_resumed_run_does_is_of_its_last_start(cpt: Cpt, layout: Layout) -> None:
    start = time.time() - 100
    before = [
        {"event": "phase", "phase": "starting Ray", "time": start - 300},
        {**step(10), "time": start - 200},
        {**step(20), "time": start - 20, "phase": "training"},
    ]
    end = {"event": "end", "state": "interrupted", "step": 20, "time": start - 10}
    ray = {"event": "phase", "phase": "starting Ray", "time": start + 20}
    loading = {"event": "phase", "phase": "loading the model", "time": start + 30}
    write(layout, started=datetime.fromtimestamp(start, timezone.utc).isoformat(timespec="seconds"))

    def said(*events: dict[str, object]) -> tuple[str, bool, bool]:
        layout.events.write_text("".join(json.dumps(event) + "\n" for event in (*before, *events)))
        text = cpt("status", layout.run_dir).out
        known = json.loads(cpt("status", layout.run_dir, "--json").out)
        (listed,) = json.loads(cpt("runs", "--storage", layout.storage, "--json").out)
        of = {"tokens_per_second", "seconds_left"} & set(known["last_step"])
        first = text.splitlines()[0]
        assert first == f"Run first: running{', ' if known['phase'] else ''}{known['phase'] or ''}"
        assert (listed["phase"], listed["last_step"]) == (known["phase"], known["last_step"])
        assert "  step         2" in text
        assert len(of) == ("tokens/s" in text) + ("  left  " in text)
        return known["phase"], "tokens/s" in text, "  left  " in text

    for ending in ((), (end,)):  # without an end where the launcher was killed
        assert said(*ending) == (None, False, False)
        assert said(*ending, ray) == ("starting Ray", False, False)
        assert said(*ending, ray, loading) == ("loading the model", False, False)
        assert said(*ending, ray, loading, {**step(25), "time": start + 60}) == ("training", True, True)
    retried = {**end, "state": "failed", "time": start + 40}  # another try within the same start
    again = {**ray, "time": start + 50}
    assert said(ray, {**step(25), "time": start + 30}, retried, again) == ("starting Ray", False, False)


@pytest.mark.parametrize("state", ["finished", "failed", "interrupted"])
def test_a_run_that_has_ended_is_in_no_phase(cpt: Cpt, layout: Layout, state: str) -> None:
    write(layout, state=state)
    told = {"event": "phase", "phase": "evaluating", "done": 19, "of": 41, "seconds_left": 100}
    layout.events.write_text("".join(json.dumps(event) + "\n" for event in (step(40), told)))
    known = json.loads(cpt("status", layout.run_dir, "--json").out)
    assert (known["phase"], known["evaluating"]) == (None, None)
    assert known["last_step"]["tokens_per_second"] == 3000


def _fifo(path: Path) -> None:
    os.mkfifo(path)


BAD_RUNS: dict[str, Callable[[Path], object]] = {
    "deep": lambda path: path.write_text("[" * 100_000),
    "a list": lambda path: path.write_text('["running"]'),
    "no state": lambda path: path.write_text('{"run": "first"}'),
    "another state": lambda path: path.write_text('{"state": ["running"]}'),
    "binary": lambda path: path.write_bytes(b"\x00\xff\xfe"),
    "nothing": lambda path: path.touch(),
    "dangling": lambda path: path.symlink_to("absent"),
    "a pipe": _fifo,
    "a folder": lambda path: path.mkdir(),
    "a device": lambda path: path.symlink_to("/dev/zero"),
    "no host": lambda path: path.write_text('{"state": "running", "pid": 1}'),
    "no number": lambda path: path.write_text(f'{{"state": "running", "host": "{socket.gethostname()}", "pid": "x"}}'),
}


@pytest.mark.parametrize("kind", BAD_RUNS)
def test_one_bad_run_hides_no_other(cpt: Cpt, layout: Layout, kind: str) -> None:
    write(layout)
    bad = Layout(layout.storage, "bad")
    (bad.run_dir / "cpt").mkdir(parents=True)
    bad.train_log.touch()
    BAD_RUNS[kind](bad.run_json)
    table = cpt("runs", "--storage", layout.storage)
    assert [line.split()[:2] for line in table.out.splitlines()[1:]] == [["first", "running"], ["bad", "unreadable"]]
    listed = json.loads(cpt("runs", "--storage", layout.storage, "--json").out)
    assert [run["state"] for run in listed] == ["running", "unreadable"]
    for command in ("status", "checkpoints", "logs", "export", "eval"):
        done = cpt(command, bad.run_dir, *(("--to", layout.storage / "out") if command == "export" else ()))
        assert (done.code, done.out) == (4, "")
        assert done.err.startswith("error: cannot read it: ")
        assert f"mv {bad.run_json} {bad.run_json}.bad" in done.err


BAD_EVENTS = [
    '{"event": "step"}', '{"event": "step", "step": 3, "loss": null}', '{"event": "step", "step": 3, "loss": "x"}',
    '{"event": "step", "step": "x", "loss": 1.0}', '{"event": "step", "step": [], "loss": 1.0}',
    '{"event": "step", "step": -1, "loss": 1.0}', '{"event": "step", "step": NaN, "loss": 1.0}',
    '{"event": "step", "step": 3, "loss": 1' + "0" * 400 + "}", '{"event": "eval", "step": 3}', '{"event": "eval"}',
    '{"event": "checkpoint", "bytes": {}}', '{"event": ["step"]}', "[]", "null", "3", "[" * 100_000, "\x00\x1b[2J", "",
]  # fmt: skip


@pytest.mark.parametrize("line", BAD_EVENTS, ids=[line[:60] for line in BAD_EVENTS])
def test_a_bad_event_is_passed_over(cpt: Cpt, layout: Layout, line: str) -> None:
    write(layout)
    layout.events.write_text(f"{json.dumps(step(10, 5.0))}\n{line}\n{json.dumps(step(20, 4.0))}\n")
    assert "  loss         5.0000 -> 4.0000\n" in cpt("status", layout.run_dir).out
    assert cpt("runs", "--storage", layout.storage).out.splitlines()[1].split()[:3] == ["first", "running", "20/40"]


@pytest.mark.parametrize("wrong", ["x", None, [1], {"a": 1}, float("nan"), float("inf"), -1, 10**30])
def test_figures_of_an_event_that_are_none_are_left_out(cpt: Cpt, layout: Layout, wrong: object) -> None:
    names = ("total", "lr", "tokens_per_second", "tokens_per_second_per_worker", "seconds_left", "bytes", "time")
    layout.events.write_text(
        json.dumps({**step(10), **dict.fromkeys(names, wrong)})
        + "\n"
        + json.dumps({"event": "checkpoint", "step": 10, "bytes": wrong})
        + "\n"
    )
    facts = ("workers", "restarts", "tokens", "output", "ended", "cause", "exit_code", "started", "checkpoints")
    write(layout, **dict.fromkeys(facts, wrong))
    for command in (("status", layout.run_dir), ("runs", "--storage", layout.storage), ("checkpoints", layout.run_dir)):
        assert (done := cpt(*command)).code == 0, done.err


def test_json_is_json_whatever_the_loss(cpt: Cpt, layout: Layout) -> None:
    def refuse(constant: str) -> None:
        pytest.fail(f"{constant} is no JSON")

    write(layout, cause="\x1b[2J")
    layout.events.write_text(json.dumps(step(10, float("nan"))) + "\n")
    save(layout.output, 10, loss=float("inf"))
    status = json.loads(cpt("status", layout.run_dir, "--json").out, parse_constant=refuse)
    assert (status["last_step"]["step"], status["last_step"]["loss"]) == (10, None)
    (listed,) = json.loads(cpt("runs", "--storage", layout.storage, "--json").out, parse_constant=refuse)
    assert listed["last_step"]["loss"] is None
    (saved,) = json.loads(cpt("checkpoints", layout.run_dir, "--json").out, parse_constant=refuse)
    assert (saved["step"], saved["loss"]) == (10, None)
    assert "loss         nan -> nan" in cpt("status", layout.run_dir).out


def test_control_characters_do_nothing(cpt: Cpt, layout: Layout) -> None:
    write(layout, state="failed", cause="\x1b]0;title\x07\x1b[2J", host="h\x9bx\ny", user="\u202e")
    layout.train_log.write_text("(\x1b[36mRayTrainWorker\x1b[0m) one\ttwo\n\x1b[8mhidden \x1b[1A\x1b[2K\n")
    status = cpt("status", layout.run_dir).out
    assert "  cause        \\x1b]0;title\\x07\\x1b[2J\n" in status
    assert "on h\\x9bx y by \\u202e\n" in status
    assert cpt("logs", layout.run_dir).out == "(RayTrainWorker) one\ttwo\nhidden \\x1b[1A\\x1b[2K\n"
    assert "h\\x9bx y" in cpt("runs", "--storage", layout.storage).out
    evil = Layout(layout.storage, "e\x1b[2J\n::error ::x")
    (evil.run_dir / "cpt").mkdir(parents=True)
    evil.run_json.write_text("{")
    assert "\ne\\x1b[2J ::error ::x  unreadable" in cpt("runs", "--storage", layout.storage).out
    assert all(line[:7] in ("error: ", "  where", "  next:") for line in cpt("status", evil.run_dir).err.splitlines())
