"""What lines and rows say about a training."""

from __future__ import annotations

import json

import pytest

from cpt_launcher import progress
from cpt_launcher.progress import STOPPING, Progress

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


def test_a_resumed_training_has_no_rate_until_its_second_row() -> None:
    state = Progress(1, 100)
    state.line("***** Running training *****", 0.0)
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
    assert set(event) == {"event", "time", "step", "total", "loss"}
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
