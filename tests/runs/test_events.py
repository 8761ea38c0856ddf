"""What lines and rows say about a training."""

from __future__ import annotations

import json

import pytest

from cpt_launcher.runs import events as progress
from cpt_launcher.runs.events import STOPPING, Progress

LINES = [
    ("2026-11-23 01:30:17,566\tINFO worker.py:1927 -- Started a local Ray instance.", "starting workers"),
    ("(TorchTrainer pid=22908) Started distributed worker processes: ", "loading the stack in the workers"),
    ("(RayTrainWorker pid=2) Setting up process group for: env:// [rank=0, world_size=2]", None),
    ("(RayTrainWorker pid=2) something that nobody knows", None),
    ("[INFO|2026-11-23 01:30:39] llamafactory.data.loader:143 >> Loading dataset moby_dick.jsonl...", "tokenising"),
    (">> loading weights file /s/models/tiny-gemma3/model.safetensors", "loading the model"),
    ("(RayTrainWorker pid=3) Loading dataset moby_dick.jsonl...", None),  # a straggler
    ("[INFO|trainer.py:2409] >> ***** Running training *****", "training"),
    (">> Saving model checkpoint to /s/r/output/checkpoint-5", "saving"),
    ("***** train metrics *****", "finishing"),
]


def row(step: int, total: int = 40, loss: float = 2.0) -> str:
    return json.dumps({"current_steps": step, "total_steps": total, "loss": loss, "lr": 1e-3, "epoch": 0.5})


def test_phases_go_forward() -> None:
    state = Progress(2, 1024)
    found = [(event := state.line(line, 1.0)) and event["phase"] for line, _ in LINES]
    assert found == [phase for _, phase in LINES]


def test_rates_and_time_left() -> None:
    state = Progress(workers=4, tokens_per_step=4096)
    state.line("***** Running training *****", 100.0)
    first = state.row(row(5), 110.0)
    assert first is not None
    assert (first["seconds_per_step"], first["seconds_left"]) == (2.0, 70.0)
    second = state.row(row(10), 115.0)
    assert second is not None
    assert (second["seconds_per_step"], second["tokens_per_second"]) == (1.0, 4096.0)
    assert second["tokens_per_second_per_worker"] == 1024.0
    assert second["seconds_left"] == 30.0
    said = "step 10/40  loss 2.0000  lr 1.00e-03  4,096 tokens/s (1,024 per worker)  0:00:30 left"
    assert progress.describe(second) == said


WORKER = "\x1b[36m(RayTrainWorker pid=24806)\x1b[0m "
TRAINING = [
    f"{WORKER}[INFO|trainer.py:2409] >> ***** Running training *****",
    f"{WORKER}>>   Total optimization steps = 40",
]
EVALUATION = f"{WORKER}***** Running Evaluation *****"
EVALUATED = f"{WORKER}{{'eval_loss': 7.73, 'eval_runtime': 156.2, 'epoch': 0}}"
ARGUMENTS = {"eval_dataset": "held", "do_eval": True, "eval_strategy": "steps", "eval_steps": 20, "save_steps": 20}


def bar(done: int, total: int, took: str = "00:00", left: str = "?") -> str:
    """Of the training, as a worker's output has it once carriage returns end lines."""
    return f" {100 * done // total:2}%|\u2588\u2588        | {done}/{total} [{took}<{left},  2.39s/it]"


def below(done: int, total: int, took: str = "00:00", left: str = "?") -> str:
    """Of an evaluation while there is one of the training."""
    return f"{bar(done, total, took, left)}\x1b[A"


def feed(state: Progress, lines: list[tuple[float, str]]) -> list[progress.Event]:
    """What a run's output says, line by line."""
    return [event for now, line in lines if (event := state.line(line, now))]


def test_the_base_model_is_evaluated_first() -> None:
    state = Progress(2, 1024, ARGUMENTS)
    events = feed(state, [(100.0, line) for line in TRAINING])
    events += feed(state, [(100.1, bar(0, 40)), (100.2, EVALUATION), (104.0, ""), (104.0, below(1, 41))])
    assert (state.total, state.bar and state.bar.left) == (40, None)
    events += feed(state, [(108.0, below(2, 41, "00:04", "02:36")), (172.0, below(19, 41, "01:12", "01:23"))])
    events += feed(state, [(173.0, below(20, 41, "01:13", "01:22"))])
    assert [progress.describe(event) for event in events] == [
        "training", "evaluating the base model", "evaluating the base model 19/41, 0:01:23 left",
    ]  # fmt: skip
    assert (state.phase, state.step) == ("evaluating the base model", 0)
    assert state.bar is not None
    assert (state.bar.done, state.bar.total, state.bar.left_at(175.0)) == (20, 41, 80.0)
    assert feed(state, [(250.2, bar(0, 40)), (250.2, below(41, 41, "02:30", "00:00")), (250.2, EVALUATED)]) == []
    assert (state.phase, state.bar) == ("training", None)
    assert feed(state, [(264.2 + 14 * at, bar(1 + at, 40, "02:44", "04:00")) for at in range(5)]) == []
    event = state.row(row(5), 320.4)
    assert event is not None
    assert (event["seconds_per_step"], event["tokens_per_second"]) == (14.0, 73.1)
    assert event["seconds_left"] == pytest.approx(35 * 14 + 2 * 150, abs=1)


def test_how_often_an_evaluation_is_told_of() -> None:
    state = Progress(2, 1024, ARGUMENTS)
    feed(state, [(0.0, TRAINING[0]), (0.0, EVALUATION)])
    minutes = [(float(at), below(at, 3600, f"{at // 60:02}:{at % 60:02}", "30:00")) for at in range(1, 3600)]
    assert 15 <= len(feed(state, minutes)) <= 25


def test_an_evaluation_lasts_until_its_loss_is_there() -> None:
    """The row of the step before it is read when it has begun."""
    state = Progress(2, 1024, ARGUMENTS)
    feed(state, [(0.0, line) for line in TRAINING] + [(2.0 * at, bar(at, 40)) for at in range(1, 21)])
    assert [event["phase"] for event in feed(state, [(40.0, EVALUATION), (41.0, below(1, 10))])] == ["evaluating"]
    assert state.row(row(20), 41.2) is not None
    assert state.phase == "evaluating"
    assert state.row('{"current_steps": 20, "total_steps": 40, "eval_loss": 6.4}', 60.0) is not None
    assert state.phase == "training"
    assert state.forecast.evaluation == 20.0


def test_the_last_evaluation_is_after_the_training() -> None:
    state = Progress(2, 1024, ARGUMENTS)
    feed(state, [(0.0, line) for line in TRAINING] + [(2.0 * at, bar(at, 40)) for at in range(1, 41)])
    feed(state, [(80.0, "***** train metrics *****"), (81.0, EVALUATION), (85.0, bar(2, 40, "00:04", "00:36"))])
    assert (state.phase, state.step, state.bar and state.bar.done) == ("evaluating", 40, 2)
    feed(state, [(90.0, "***** eval metrics *****")])
    assert (state.phase, state.bar) == ("finishing", None)


def test_an_evaluation_beside_any_training() -> None:
    said: list[str] = []
    moments = iter([0.0, 10.0, 60.0, 61.0, 90.0])
    take = progress.telling(said.append, lambda: next(moments))
    for line in (EVALUATION, bar(2, 41), bar(19, 41, "01:00", "01:23"), bar(20, 41, "01:01", "01:22")):
        take(line)
    take("***** eval metrics *****")
    assert said == ["evaluating 19/41, 0:01:23 left"]


def test_a_bar_of_something_else_is_no_step() -> None:
    state = Progress(2, 1024)
    shards = "Loading checkpoint shards:  50%|\u2588\u2588   | 20/40 [00:01<00:01,  1.00it/s]"
    feed(state, [(0.0, line) for line in TRAINING])
    feed(state, [(1.0, shards), (1.0, bar(3, 7)), (1.0, below(3, 40))])
    assert (state.step, state.bar) == (0, None)


def test_a_resumed_training_counts_its_own_steps() -> None:
    state = Progress(1, 100)
    resumed = f"{WORKER}[INFO|trainer.py:2442] >>   Continuing training from global step 20"
    feed(state, [(0.0, line) for line in TRAINING] + [(1.0, resumed)])
    event = state.row(row(22), 11.0)
    assert event is not None
    assert (event["seconds_per_step"], event["tokens_per_second"], event["seconds_left"]) == (5.0, 20.0, 90.0)
    assert [event["phase"] for event in feed(state, [(12.0, EVALUATION)])] == ["evaluating"]  # not the base model


def test_a_training_that_says_nothing_has_no_rate_until_its_second_row() -> None:
    state = Progress(1, 100)
    assert "seconds_per_step" not in (state.row(row(1000, 2000), 10.0) or {})
    assert (state.row(row(1010, 2000), 20.0) or {})["seconds_per_step"] == 1.0


@pytest.mark.parametrize("text", ["", "{", '{"current_steps": 3', "[1]", '{"eval_loss": 1}', '{"loss": "x"}'])
def test_a_row_that_is_none_is_passed_over(text: str) -> None:
    assert Progress(1, 1).row(text, 0.0) is None


def test_sizes_and_durations() -> None:
    assert [progress.size(n) for n in (12, 1234, 17_200_000, 5_600_000_000, None)] == [
        "12 B", "1.2 kB", "17.2 MB", "5.6 GB", "0 B",
    ]  # fmt: skip
    assert [progress.duration(n) for n in (5, 3661, 90061)] == ["0:00:05", "1:01:01", "1 d 1:01:01"]


@pytest.mark.parametrize(
    "row",
    [
        '{"current_steps": 3, "loss": 1' + "0" * 400 + "}", '{"current_steps": -3, "loss": 1.0}', "[" * 100_000,
        '{"current_steps": 1' + "0" * 400 + ', "eval_loss": 1.0}', '{"current_steps": 3, "eval_loss": "x"}',
    ],
    ids=["huge loss", "negative step", "deep", "huge step", "loss is text"],
)  # fmt: skip
def test_a_row_that_is_none_is_no_event(row: str) -> None:
    assert Progress(2, 10).row(row, 1.0) is None


def test_wrong_figures_of_a_row_are_left_out() -> None:
    row = '{"current_steps": 3, "total_steps": "x", "loss": NaN, "lr": "x", "epoch": []}'
    event = Progress(2, 10).row(row, 1.0)
    assert event is not None
    assert set(event) == {"event", "time", "step", "total", "loss", "phase"}
    assert progress.describe(event) == "step 3/?  loss nan"


def test_the_last_row_has_no_loss_and_is_a_step() -> None:
    state = Progress(1, 0)
    state.row('{"current_steps": 40, "total_steps": 42, "loss": 2.0}', 1.0)
    assert state.row('{"current_steps": 42, "total_steps": 42}', 2.0) is None
    assert state.step == 42


def test_nothing_begins_while_the_workers_are_stopped() -> None:
    state = Progress(1, 0, phase=STOPPING)
    assert state.line("***** Running training *****", 1.0) is None
    assert state.phase == STOPPING
