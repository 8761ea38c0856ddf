"""How long a training will still take, from moments that are given."""

from __future__ import annotations

import pytest

from cpt_launcher.runs.forecast import Forecast, Rhythm, evaluations, saves

EVALUATES = {"eval_dataset": "held", "do_eval": True, "eval_strategy": "steps", "eval_steps": 20, "save_steps": 20}


@pytest.mark.parametrize(
    ("rhythm", "step", "done", "total", "expected"),
    [
        (Rhythm(20, at_end=True), 0, 0, 40, 2),  # the last step is evaluated once
        (Rhythm(20, at_end=True), 0, 0, 45, 3),
        (Rhythm(20, at_end=False), 0, 0, 45, 2),
        (Rhythm(20, at_end=True), 20, 0, 45, 3),  # the one after step 20 has not been yet
        (Rhythm(20, at_end=True), 20, 20, 45, 2),
        (Rhythm(20, at_end=True), 45, 40, 45, 1),
        (Rhythm(20, at_end=True), 45, 45, 45, 0),
        (Rhythm(0, at_end=True), 3, 0, 45, 1),
        (Rhythm(), 3, 0, 45, 0),
    ],
)
def test_what_is_to_come(rhythm: Rhythm, step: int, done: int, total: int, expected: int) -> None:
    assert rhythm.to_come(step, done, total) == expected


def test_what_the_arguments_say() -> None:
    assert evaluations(EVALUATES, 40) == Rhythm(20, at_end=True)
    assert evaluations({**EVALUATES, "eval_steps": 0.1}, 45) == Rhythm(5, at_end=True)
    assert evaluations({**EVALUATES, "eval_strategy": "epoch", "num_train_epochs": 3}, 45) == Rhythm(15, at_end=True)
    assert evaluations({**EVALUATES, "eval_dataset": None}, 40) == Rhythm()
    assert evaluations({"val_size": 0.1, "do_eval": True}, 40) == Rhythm(0, at_end=True)
    assert saves({}, 1200) == Rhythm(500, at_end=True)
    assert saves({"save_strategy": "no"}, 1200) == Rhythm()
    assert saves({"save_steps": "x"}, 1200) == Rhythm(0, at_end=True)


def test_evaluations_and_saves_stand_beside_the_steps() -> None:
    train = {**EVALUATES, "save_steps": 10}
    ahead = Forecast()
    ahead.start(0, 100.0)
    ahead.pause("evaluation", 0, 100.0)
    assert ahead.left(40, train, 110.0) is None  # no step was made
    ahead.resume(250.0)  # the base model: 150 s
    for step in range(1, 11):
        ahead.mark(step, 250.0 + 2 * step, at_once=True)  # 2 s each
    assert ahead.seconds_per_step() == 2.0
    assert ahead.left(40, train, 270.0) == 30 * 2 + 2 * 150  # what a save takes is not known yet
    ahead.pause("save", 10, 270.0)
    ahead.mark(11, 270.0 + 30 + 2, at_once=True)  # the save took 30 s
    assert (ahead.save, ahead.seconds_per_step()) == (30.0, 2.0)
    assert ahead.left(40, train, 302.0) == 29 * 2 + 2 * 150 + 3 * 30
    assert ahead.left(40, train, 303.0) == 29 * 2 + 2 * 150 + 3 * 30 - 1


def test_time_goes_by_during_an_evaluation() -> None:
    ahead = Forecast()
    ahead.start(0, 0.0)
    for step in range(1, 21):
        ahead.mark(step, float(step), at_once=True)
    ahead.expected = 50.0  # the bar of the first evaluation tells
    ahead.pause("evaluation", 20, 20.0)
    assert ahead.left(40, EVALUATES, 30.0) == 20 + 2 * 50 - 10
    ahead.resume(80.0)
    assert ahead.left(40, EVALUATES, 80.0) == 20 + 60


def test_rows_alone_are_seen_late() -> None:
    """Without a bar, a step is seen after the evaluation that follows it has begun."""
    ahead = Forecast()
    ahead.start(0, 0.0)
    ahead.mark(10, 20.0, at_once=False)
    ahead.pause("evaluation", 10, 40.0)
    ahead.mark(20, 40.2, at_once=False)
    assert ahead.seconds_per_step() == 2.0
    ahead.resume(100.0)
    assert (ahead.evaluation, ahead.evaluated) == (60.0, 20)
    ahead.pause("save", 20, 100.0)
    ahead.mark(30, 100.0 + 5 + 20, at_once=False)
    assert (ahead.save, ahead.seconds_per_step()) == (5.0, 2.0)


def test_two_datasets_are_one_evaluation() -> None:
    ahead = Forecast()
    ahead.pause("evaluation", 0, 0.0)
    ahead.pause("evaluation", 0, 10.0)
    ahead.resume(25.0)
    assert ahead.evaluation == 25.0
