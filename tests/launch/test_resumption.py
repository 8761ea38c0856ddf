"""What a run resumes from, with what of its config, and how it is said."""

from __future__ import annotations

import json
import os
import shutil
import socket
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from cpt_launcher.launch import resumption
from cpt_launcher.runs import record
from cpt_launcher.stack import tokens

from ..conftest import Outcome

Cpt = Callable[..., Outcome]
Called = Callable[[], dict[str, object]]


def known(workspace: Path, run: str = "first") -> dict[str, object]:
    return dict(json.loads((workspace / "storage" / run / "cpt" / "run.json").read_text()))


def trained_with(workspace: Path, run: str = "first") -> dict[str, object]:
    return dict(yaml.safe_load((workspace / "storage" / run / "cpt" / "train.yaml").read_text()))


@pytest.fixture
def cut(stand_in: Called, monkeypatch: pytest.MonkeyPatch) -> Called:
    """Trainings end after step 3; their checkpoint is of step 2."""
    monkeypatch.setenv("STAND_IN_MODE", "cut")
    return stand_in


def test_every_difference_and_which_of_the_two_holds() -> None:
    before = {
        "learning_rate": 0.001,
        "max_steps": 60,
        "bf16": False,
        "cutoff_len": 128,
        "output_dir": "/a",
        "deepspeed": "/a/z3.json",
    }
    now = {
        "learning_rate": 0.002,
        "max_steps": 40,
        "bf16": True,
        "cutoff_len": 256,
        "output_dir": "/b",
        "deepspeed": "/b/z3.json",
    }
    assert [str(change) for change in resumption.compare(before, {**now, "weight_decay": 0.1})] == [
        "learning_rate 0.001 -> 0.002: the checkpoint's 0.001 stays in force; --fresh starts over with yours",
        "max_steps 60 -> 40: in force from here, and the learning rate follows the new schedule",
        "bf16 False -> True: in force from here",
        "cutoff_len 128 -> 256: in force from here; other batches come, so some text may be seen twice or not at all",
        "weight_decay 0.0 -> 0.1: the checkpoint's 0.0 stays in force; --fresh starts over with yours",
    ]
    assert list(resumption.compare({}, now)) == []
    fetched = "/storage/models/some--model"
    assert list(resumption.compare({"model_name_or_path": "some/model"}, {"model_name_or_path": fetched})) == []


@pytest.mark.parametrize(
    ("before", "now", "is_said"),
    [
        ("a@but-random-5pc-of-9-seed-42-b2", "a@random-5pc-of-9-seed-42-c3", True),
        ("a", "a@random-5pc-of-9-seed-42-c3", True),
        (["b", "a@but-last-5pc"], ["b@last-5pc", "a@last-5pc"], True),
        ("a@but-last-5pc", "b", False),
        ("a", None, False),
    ],
)
def test_held_out_text_that_was_trained_on_is_said(before: object, now: object, is_said: bool) -> None:
    changes = resumption.compare({"dataset": before, "eval_dataset": "c"}, {"dataset": "x", "eval_dataset": now})
    (said,) = (str(change) for change in changes if change.name == "eval_dataset")
    assert ("some of what is held out now may have been trained on" in said) == is_said


def test_a_resumed_run_with_another_sample_says_so(cpt: Cpt, workspace: Path, cut: Called) -> None:
    assert cpt("run", "my.yaml", "eval={share: 0.05}").code == 1
    assert "held out now" not in cpt("run", "my.yaml", "eval={share: 0.05}", "--dry-run").out
    for other in (("eval={share: 0.1}",), ("eval={share: 0.05}", "train.seed=7")):
        assert "some of what is held out now may have been trained on" in cpt("run", "my.yaml", *other, "--dry-run").out


def test_a_changed_learning_rate_is_named_and_the_checkpoints_is_recorded(
    cpt: Cpt, workspace: Path, cut: Called
) -> None:
    place = workspace / "storage" / "first"
    done = cpt("run", "my.yaml", "train.learning_rate=1e-3", "train.max_steps=60")
    assert done.code == 1
    assert f"`cpt resume {place}` resumes from checkpoint-2" in done.err
    changed = ("my.yaml", "train.learning_rate=2e-3", "train.max_steps=40")
    resumes = f"resumes from {place}/output/checkpoint-2, step 2\n"
    rate = "learning_rate 0.001 -> 0.002: the checkpoint's 0.001 stays in force; --fresh starts over with yours\n"
    steps = "max_steps 60 -> 40: in force from here, and the learning rate follows the new schedule\n"
    previewed = cpt("run", *changed, "--dry-run").out
    assert previewed.endswith(f"{resumes}differs from the recorded run: {rate}differs from the recorded run: {steps}")
    done = cpt("run", *changed)
    assert resumes in done.err
    assert f"warning: differs from the recorded run: {rate}" in done.err
    assert (trained_with(workspace)["learning_rate"], trained_with(workspace)["max_steps"]) == (0.001, 40)
    assert known(workspace)["in_force"] == {"learning_rate": 0.001}
    assert rate in cpt("run", *changed, "--dry-run").out
    assert "differs" not in cpt("run", "my.yaml", "train.learning_rate=1e-3", "train.max_steps=40", "--dry-run").out


def test_a_llamafactory_yaml_stays_as_it_is_and_the_record_says_what_holds(
    cpt: Cpt, workspace: Path, cut: Called
) -> None:
    def write(rate: str, batch: int) -> None:
        (workspace / "plain.yaml").write_text(
            "model_name_or_path: some/model\nstage: pt\ndo_train: true\nfinetuning_type: full\nbf16: true\n"
            f"cutoff_len: 100\nray_run_name: first\nray_storage_path: {workspace}/storage\n"
            f"output_dir: {workspace}/storage/first/output\nlearning_rate: {rate}\n"
            f"per_device_train_batch_size: {batch}\n"
        )

    write("0.001", 1)
    cpt("run", "plain.yaml")
    for rate in ("0.002", "0.003"):
        write(rate, 4)
        assert f"learning_rate 0.001 -> {rate}: the checkpoint's 0.001 stays in force" in cpt("run", "plain.yaml").err
    assert trained_with(workspace)["learning_rate"] == 0.003
    assert known(workspace)["in_force"] == {"learning_rate": 0.001, "per_device_train_batch_size": 1}
    assert known(workspace)["tokens_per_step"] == 100


def test_a_run_is_resumed_as_it_was_recorded(
    cpt: Cpt, workspace: Path, cut: Called, monkeypatch: pytest.MonkeyPatch
) -> None:
    cpt("run", "my.yaml")
    place = workspace / "storage" / "first-2"
    assert cpt("run", "my.yaml", "--fresh", "train.cutoff_len=64", "--retries", "0").code == 1
    (workspace / "my.yaml").unlink()
    elsewhere = workspace.parent / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    command = cpt("status", place).out.rpartition("to resume    ")[2].split()
    assert command == ["cpt", "resume", str(place)]
    previewed = cpt(*command[1:], "--dry-run").out
    assert previewed.endswith(f"resumes from {place}/output/checkpoint-2, step 2\n")
    monkeypatch.setenv("STAND_IN_MODE", "train")
    done = cpt(*command[1:])
    assert done.code == 0, done.err
    assert "differs" not in done.err
    assert (trained_with(workspace, "first-2")["cutoff_len"], known(workspace, "first-2")["state"]) == (64, "finished")
    assert known(workspace, "first-2")["overrides"] == ["train.cutoff_len=64"]
    assert "to resume" not in cpt("status", place).out
    refused = cpt("resume", place)
    assert (refused.code, "the run first-2 has finished" in refused.err) == (2, True)
    assert cpt("resume", "first", "--storage", workspace / "storage").code == 0


def test_a_run_whose_working_directory_is_gone_is_resumed_from_the_storage(
    cpt: Cpt, workspace: Path, cut: Called, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = workspace / "there"
    shutil.copytree(workspace / "dataset-configs", there / "dataset-configs")
    shutil.copy(workspace / "my.yaml", there)
    shutil.rmtree(workspace / "dataset-configs")
    monkeypatch.chdir(there)
    assert cpt("run", "my.yaml").code == 1
    monkeypatch.chdir(workspace)
    shutil.rmtree(there)
    monkeypatch.setenv("STAND_IN_MODE", "train")
    done = cpt("resume", workspace / "storage" / "first")
    assert done.code == 0, done.err


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_a_record_of_somebody_else_is_not_resumed_unasked(cpt: Cpt, workspace: Path, cut: Called) -> None:
    cpt("run", "my.yaml")
    os.chown(workspace / "storage" / "first" / "cpt" / "run.json", 12345, 12345)
    assert cpt("resume", workspace / "storage" / "first").code == 4
    assert cpt("resume", workspace / "storage" / "first", "--trust-owner", "12345").code == 1


def test_a_record_without_overrides_is_refused(cpt: Cpt, workspace: Path, cut: Called) -> None:
    cpt("run", "my.yaml")
    path = workspace / "storage" / "first" / "cpt" / "run.json"
    path.write_text(json.dumps({key: value for key, value in known(workspace).items() if key != "overrides"}))
    refused = cpt("resume", path.parents[1])
    assert (refused.code, "recorded without its config and overrides" in refused.err) == (2, True)


def test_tokens_trained_on_are_counted_across_starts(cpt: Cpt, workspace: Path, cut: Called) -> None:
    cpt("run", "my.yaml", "train.cutoff_len=64")
    assert known(workspace)["trained_on"] == {"steps": 3, "tokens": 3 * 512, "epochs": 0.75}
    cpt("run", "my.yaml", "train.cutoff_len=128")
    assert known(workspace)["trained_on"] == {"steps": 3, "tokens": 2 * 512 + 1024, "epochs": 0.75}
    assert "  trained on   2,048 tokens in 3 steps, 0.75 epochs\n" in cpt("status", workspace / "storage" / "first").out


def test_tokens_trained_on() -> None:
    facts: dict[str, object] = {"tokens_per_step": 100, "resumed": {"step": 10, "tokens": 500}}
    assert [record.tokens_until(facts, step) for step in (5, 10, 12)] == [250, 500, 700]
    assert record.tokens_until({"tokens_per_step": 0}, 5) is None
    whole = {"tokens_per_step": 100, "tokens": {"tokens": 950}}
    assert record.trained(whole, 10, 1.0) == {"steps": 10, "tokens": 950, "epochs": 1.0}
    assert record.trained(whole, 5, 0.5) == {"steps": 5, "tokens": 500, "epochs": 0.5}
    assert tokens.describe_trained({"steps": 1_000, "tokens": 20_480, "epochs": 0.027}) == (
        "20,480 tokens in 1,000 steps, 0.03 epochs"
    )


def test_where_the_cluster_is_is_asked_once(
    cpt: Cpt, workspace: Path, stand_in: Called, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[object] = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def count() -> None:
            while True:
                try:
                    connection, caller = server.accept()
                except OSError:
                    return
                connection.close()
                asked.append(caller)

        listener = threading.Thread(target=count, daemon=True)
        listener.start()
        (workspace / "tmp" / "ray").mkdir(parents=True)
        address = f"127.0.0.1:{server.getsockname()[1]}"
        (workspace / "tmp" / "ray" / "ray_current_cluster").write_text(address)
        monkeypatch.setenv("RAY_TMPDIR", str(workspace / "tmp"))
        done = cpt("run", "my.yaml", "--skip-preflight", "cluster")
        server.shutdown(socket.SHUT_RDWR)
        listener.join()
    assert done.code == 0, done.err
    assert len(asked) == 1
    env = stand_in()["env"]
    assert isinstance(env, dict)
    assert env["RAY_ADDRESS"] == address
