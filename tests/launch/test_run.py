"""`cpt run` with the stand-in for llamafactory-cli."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from cpt_launcher import disk
from cpt_launcher.cli import show
from cpt_launcher.config import read
from cpt_launcher.layout import Layout
from cpt_launcher.plan.plan import Plan, plan_run
from cpt_launcher.runs import history
from cpt_launcher.runs.results import Results

from ..conftest import Outcome

Cpt = Callable[..., Outcome]
Called = Callable[[], dict[str, object]]


def record(workspace: Path, run: str = "first") -> dict[str, object]:
    return dict(json.loads((workspace / "storage" / run / "cpt" / "run.json").read_text()))


def test_a_run_from_start_to_end(cpt: Cpt, workspace: Path, stand_in: Called, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("FORCE_TORCHRUN", "USE_MCA", "USE_V1", "ALLOW_EXTRA_ARGS"):
        monkeypatch.setenv(name, "1")
    done = cpt("run", "my.yaml", "train.cutoff_len=64")
    storage = workspace / "storage"
    assert done.code == 0, done.err
    assert done.out == (
        "Run first finished: 2 steps, loss 3.0000 -> 2.0000\n"
        "  trained on   1,024 tokens in 2 steps, 0.50 epochs\n"
        f"  model        {storage}/first/output\n"
        "  checkpoints  checkpoint-2 (in the same folder)\n"
        f"  loss plot    {storage}/first/cpt/loss.png\n"
        f"  log          {storage}/first/cpt/train.log\n"
        f"  next         cpt export {storage}/first --to first-model\n"
    )
    called = stand_in()
    assert called["argv"] == ["train", f"{storage}/first/cpt/train.yaml"]
    env = called["env"]
    assert isinstance(env, dict)
    assert (env["USE_RAY"], env["HF_TOKEN"]) == ("1", "hf_planted_value_123")
    assert not {"FORCE_TORCHRUN", "USE_MCA", "USE_V1", "ALLOW_EXTRA_ARGS"} & set(env)
    assert yaml.safe_load((storage / "first" / "cpt" / "train.yaml").read_text())["cutoff_len"] == 64
    assert sorted(path.name for path in storage.iterdir()) == [
        ".cpt", "corpus.jsonl", "dataset_info.json", "ds_z3_config.json", "first",
    ]  # fmt: skip
    assert (record(workspace)["state"], record(workspace)["exit_code"]) == ("finished", 0)
    assert history.load(Layout(storage, "first")).secrets == ("HF_TOKEN",)


def test_a_run_uses_the_tokens_that_are_there_and_says_what_they_are(
    cpt: Cpt, workspace: Path, stand_in: Called
) -> None:
    storage = workspace / "storage"
    arguments = ("my.yaml", "train.cutoff_len=64")
    assert cpt("stage-data", "my.yaml").code == 0
    plan = plan_run(read.read(workspace / "my.yaml", arguments[1:]), {})
    assert plan.tokens is not None
    counts = {"documents": 3, "tokens_in": 200, "blocks": 3, "tokens": 192, "lost": 8, "end_of_text": "<eos>"}
    disk.write_json(Layout(storage, "").tokenized_marker(plan.tokens), counts)
    done = cpt("run", *arguments)
    assert f"cpt: trains on tokens that are there: {storage}/tokenized/{plan.tokens}" in done.err
    assert "  tokens       200 tokens in 3 documents, packed into 3 blocks (4.00% lost)" in done.out
    assert record(workspace)["tokens"] == counts


def test_many_checkpoints_are_not_listed_one_by_one(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    saved = tuple(tmp_path / f"checkpoint-{step}" for step in range(10, 110, 10))
    config = tmp_path / "x.yaml"
    plan = Plan(config, Layout(tmp_path, "x"), "", (), {}, "", 1, "cpu", tmp_path)
    show.report(plan, Results(100, 3.0, 2.0, saved, None))
    assert (
        "  checkpoints  checkpoint-10, ... (8 more), checkpoint-100 (in the same folder)\n" in capsys.readouterr().out
    )


def test_a_secret_that_the_stack_prints_is_in_no_file_and_on_no_screen(
    cpt: Cpt, workspace: Path, stand_in: Called
) -> None:
    done = cpt("run", "my.yaml")
    log = (workspace / "storage" / "first" / "cpt" / "train.log").read_text()
    first, *rest = log.splitlines()
    assert first.startswith("cpt: started 20")
    assert rest == ["(RayTrainWorker pid=1) the token is <HF_TOKEN>"]
    assert "hf_planted" not in done.out + done.err
    files = [path for path in (workspace / "storage").rglob("*") if path.is_file()]
    assert not [path for path in files if b"hf_planted" in path.read_bytes()]


def test_a_missing_secret_stops_before_anything_is_written(
    cpt: Cpt, workspace: Path, stand_in: Called, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    done = cpt("run", "my.yaml")
    assert done.code == 4
    assert "the secret HF_TOKEN is not set" in done.err
    assert "export HF_TOKEN=" in done.err
    assert list((workspace / "storage").iterdir()) == []


def test_too_little_text_stops_before_the_workers_start(cpt: Cpt, workspace: Path, stand_in: Called) -> None:
    done = cpt("run", "my.yaml", "train.cutoff_len=4096")
    assert done.code == 3
    assert "1,700 bytes of text cannot fill one block of 4,096 tokens" in done.err
    assert not (workspace / "called.json").exists()


def test_a_failure_shows_its_innermost_cause(
    cpt: Cpt, workspace: Path, stand_in: Called, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STAND_IN_MODE", "fail")
    done = cpt("run", "my.yaml")
    assert done.code == 1
    assert "error: training failed: ValueError: the inner cause\n" in done.err
    assert f"where: a worker (pid 1); the whole log: {workspace}/storage/first/cpt/train.log" in done.err
    assert (record(workspace)["state"], record(workspace)["cause"]) == ("failed", "ValueError: the inner cause")


def test_a_training_that_trains_nothing_has_failed(
    cpt: Cpt, workspace: Path, stand_in: Called, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STAND_IN_MODE", "nothing")
    done = cpt("run", "my.yaml")
    assert (done.code, record(workspace)["state"]) == (1, "failed")
    assert "trained nothing" in done.err


def test_a_finished_run_is_not_run_again_but_afresh(cpt: Cpt, workspace: Path, stand_in: Called) -> None:
    cpt("run", "my.yaml")
    again = cpt("run", "my.yaml")
    assert again.code == 2
    assert "the run first has finished" in again.err
    assert "`cpt run my.yaml --fresh`" in again.err
    output = workspace / "storage" / "first" / "output"
    assert f"`cpt run my.yaml name=first-more model={output}`" in again.err
    assert cpt("run", "my.yaml", "--fresh").code == 0
    assert record(workspace, "first-2")["state"] == "finished"
    rendered = yaml.safe_load((workspace / "storage" / "first-2" / "cpt" / "train.yaml").read_text())
    assert rendered["output_dir"] == f"{workspace}/storage/first-2/output"


def test_an_output_without_checkpoint_is_set_aside(
    cpt: Cpt, workspace: Path, stand_in: Called, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = workspace / "storage" / "first" / "output"
    output.mkdir(parents=True)
    (output / "trainer_log.jsonl").touch()
    done = cpt("run", "my.yaml")
    assert done.code == 0
    assert "an earlier attempt saved no checkpoint" in done.err
    assert len(list(output.parent.glob("output.*"))) == 1


def test_a_half_written_checkpoint_is_set_aside(cpt: Cpt, workspace: Path, stand_in: Called) -> None:
    output = workspace / "storage" / "first" / "output"
    for step in (10, 20, 30):
        (output / f"checkpoint-{step}").mkdir(parents=True)
    (output / "checkpoint-10" / "trainer_state.json").write_text('{"global_step": 10}')
    (output / "checkpoint-10" / "optimizer.pt").touch()
    done = cpt("run", "my.yaml")
    assert "checkpoint-30 is incomplete (" in done.err
    assert f"resumes from {output}/checkpoint-10, step 10\n" in done.err
    left = {path.name.partition(".")[0] + "." * ("." in path.name) for path in output.glob("checkpoint-*0*")}
    assert left == {"checkpoint-10", "checkpoint-20.", "checkpoint-30."}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file to another user")
def test_another_users_checkpoint_is_resumed_from_only_if_asked_for(
    cpt: Cpt, workspace: Path, stand_in: Called
) -> None:
    checkpoint = workspace / "storage" / "first" / "output" / "checkpoint-10"
    checkpoint.mkdir(parents=True)
    (checkpoint / "trainer_state.json").write_text('{"global_step": 10}')
    (checkpoint / "optimizer.pt").touch()
    os.chown(checkpoint / "optimizer.pt", 65534, 65534)
    done = cpt("run", "my.yaml")
    assert (done.code, "--trust-owner nobody" in done.err) == (4, True)
    assert not (workspace / "storage" / "first" / "cpt" / "run.json").exists()
    done = cpt("run", "my.yaml", "--trust-owner", "nobody")
    assert (done.code, f"resumes from {checkpoint}, step " in done.err) == (0, True)


def test_a_running_run_is_refused_and_says_at_once_that_it_stops(
    cpt: Cpt, workspace: Path, stand_in: Called, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STAND_IN_MODE", "linger")
    skipped = [word for name in ("gpus", "model") for word in ("--skip-preflight", name)]
    command = [sys.executable, "-m", "cpt_launcher", "run", "my.yaml", "--raw", *skipped]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as first:
        assert first.stderr is not None
        while "ready" not in first.stderr.readline():
            assert first.poll() is None
        second = cpt("run", "my.yaml")
        assert "the run first is running" in cpt("resume", "my.yaml").err
        first.send_signal(signal.SIGINT)
        began = time.monotonic()
        line = first.stderr.readline()
        while "stopping the workers; Ctrl-C again does not wait" not in line:
            assert line
            line = first.stderr.readline()
        assert time.monotonic() - began < 1
        _, err = first.communicate(timeout=60)
    assert second.code == 4
    assert "the run first is running" in second.err
    assert first.returncode == 130
    folder = workspace / "storage" / "first"
    assert "cpt: interrupted by SIGINT\n" in err
    assert "error" not in err
    assert f"next:  no checkpoint was saved: `cpt resume {folder}` starts over\n" in err
    assert time.monotonic() - began < 15
    assert record(workspace)["state"] == "interrupted"


def test_a_llamafactory_yaml_runs_as_it_is(cpt: Cpt, workspace: Path, stand_in: Called) -> None:
    text = (
        "# kept\nmodel_name_or_path: some/model\nstage: pt\ndo_train: true\nfinetuning_type: full\n"
        "bf16: true\nreport_to: none\nray_run_name: plain\n"
        f"ray_storage_path: {workspace}/storage\n"
        f"output_dir: {workspace}/storage/plain/output\n"
    )
    (workspace / "plain.yaml").write_text(text)
    assert cpt("run", "plain.yaml").code == 0
    assert (workspace / "storage" / "plain" / "cpt" / "train.yaml").read_text() == text
    refused = cpt("run", "plain.yaml", "--fresh")
    assert (refused.code, "names its own run" in refused.err) == (2, True)


def test_a_run_on_an_entry_of_the_storages_own_registry(cpt: Cpt, workspace: Path, stand_in: Called) -> None:
    storage = workspace / "storage"
    (storage / "theirs.jsonl").write_text('{"text": "Call me Ishmael."}\n' * 100)
    registry = '{"theirs":{"file_name":"theirs.jsonl","source":"/x","columns":{"prompt":"text"}}}'
    (storage / "dataset_info.json").write_text(registry)
    assert cpt("run", "my.yaml", "dataset=theirs").code == 0
    assert stand_in()["argv"] == ["train", f"{storage}/first/cpt/train.yaml"]
    assert (storage / "dataset_info.json").read_text() == registry
    assert "theirs.jsonl" not in json.loads((storage / ".cpt" / "manifest.json").read_text())["files"]
