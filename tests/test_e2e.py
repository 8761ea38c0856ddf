"""The real stack on two CPU workers: LLaMA-Factory, Ray Train, DeepSpeed ZeRO-3."""

from __future__ import annotations

import hashlib
import json
import math
import re
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import yaml

from .conftest import CPT, REPOSITORY, SECRETS, Place, Watch

pytestmark = pytest.mark.e2e


def test_the_demo_trains(place: Place, trained: subprocess.CompletedProcess[str]) -> None:
    assert trained.returncode == 0, trained.stderr[-3000:]
    output = place.storage / "tiny_cpu" / "output"
    points = [json.loads(line) for line in (output / "trainer_log.jsonl").read_text().splitlines()]
    losses = [point["loss"] for point in points if "loss" in point]
    assert losses[-1] < losses[0] - 0.5
    held_out = [point["eval_loss"] for point in points if "eval_loss" in point]
    evaluated = [point["current_steps"] for point in points if "eval_loss" in point]
    assert evaluated == [0, 20, 40]  # the base model, and at both saves, of which one is the end
    results = json.loads((output / "eval_results.json").read_text())
    assert results["eval_perplexity"] == pytest.approx(math.exp(held_out[-1]))
    assert held_out[-1] < held_out[0] - 0.5
    first, last = (f"loss {loss:.4f}, perplexity {math.exp(loss):,.2f}" for loss in (held_out[0], held_out[-1]))
    lines = trained.stdout.splitlines()
    tokens = re.fullmatch(
        r"  tokens       ([\d,]+) tokens in 128 documents, packed into (\d+) blocks \(0\.\d\d% lost\);"
        r" documents end in <eos>",
        lines.pop(2),
    )
    assert tokens is not None
    given, blocks = (int(text.replace(",", "")) for text in tokens.groups())
    assert 0 <= given - blocks * 256 < 256
    assert re.fullmatch(r"  trained on   81,920 tokens in 40 steps, 0\.8\d epochs", lines.pop(2))
    assert lines == [
        f"Run tiny_cpu finished: 40 steps, loss {losses[0]:.4f} -> {losses[-1]:.4f}",
        f"  held out     base model: {first}; trained: {last}",
        f"  model        {output}",
        "  checkpoints  checkpoint-20, checkpoint-40 (in the same folder)",
        f"  loss plot    {place.storage}/tiny_cpu/cpt/loss.png",
        f"  log          {place.storage}/tiny_cpu/cpt/train.log",
        f"  next         cpt eval {place.storage}/tiny_cpu",
        f"               cpt export {place.storage}/tiny_cpu --to tiny_cpu-model",
    ]
    told = trained.stderr
    assert "cpt: starting Ray\n" in told
    assert told.index("cpt: evaluating the base model\n") < told.index("cpt: held out at step 0: ")
    assert (output / "training_loss.png").read_bytes().startswith(b"\x89PNG")


def test_its_checkpoint_is_a_zero3_checkpoint_of_two_ranks(
    place: Place, trained: subprocess.CompletedProcess[str]
) -> None:
    checkpoint = place.storage / "tiny_cpu" / "output" / "checkpoint-40"
    shards = {path.name for path in (checkpoint / "global_step40").iterdir()}
    ranks = (0, 1)
    assert shards == {f"zero_pp_rank_{rank}_mp_rank_00_model_states.pt" for rank in ranks} | {
        f"zero_pp_rank_{rank}_mp_rank_00_optim_states.pt" for rank in ranks
    }
    files = {"model.safetensors", "config.json", "tokenizer.json", "trainer_state.json", "latest"}
    assert files <= {path.name for path in checkpoint.iterdir()}
    assert json.loads((checkpoint / "trainer_state.json").read_text())["global_step"] == 40


def test_its_record(place: Place, trained: subprocess.CompletedProcess[str]) -> None:
    folder = place.storage / "tiny_cpu" / "cpt"
    record = json.loads((folder / "run.json").read_text())
    assert (record["state"], record["exit_code"], record["versions"]["llamafactory"]) == ("finished", 0, "0.9.3")
    assert (record["trained_on"]["steps"], record["trained_on"]["tokens"]) == (40, 40 * 2048)
    rendered = (folder / "train.yaml").read_bytes()
    assert record["train_yaml_sha256"] == hashlib.sha256(rendered).hexdigest()
    assert yaml.safe_load(rendered)["ray_num_workers"] == 2


def test_workers_inherit_the_secret(place: Place, trained: subprocess.CompletedProcess[str]) -> None:
    expected = hashlib.sha256(SECRETS["PLANTED_SECRET"].encode()).hexdigest()
    hashes = [path.read_text() for path in place.probes.iterdir()]
    assert len(hashes) >= 3  # the trial's actor and two workers
    assert set(hashes) == {expected}


def test_no_secret_is_written_anywhere(place: Place, trained: subprocess.CompletedProcess[str]) -> None:
    files = [path for root in (place.work, place.ray) for path in root.rglob("*") if path.is_file()]
    assert len(files) > 50
    found = [(name, path) for path in files for name, value in SECRETS.items() if value.encode() in path.read_bytes()]
    assert found == []
    assert not any(value in trained.stdout + trained.stderr for value in SECRETS.values())


def test_it_listens_on_loopback_alone(trained: subprocess.CompletedProcess[str], watch: Watch) -> None:
    programs = {program for program, _ in watch.listened}
    assert programs >= {"gcs_server", "raylet"}
    assert any(program.startswith("ray::") for program in programs), programs
    assert {host for _, host in watch.listened} <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}, watch.listened


def test_nothing_of_the_working_directory_is_imported(place: Place, trained: subprocess.CompletedProcess[str]) -> None:
    assert (place.work / "tokenize.py").is_file()
    assert not (place.ray / "imported").exists(), (place.ray / "imported").read_text()


def test_nothing_is_left_running(place: Place, trained: subprocess.CompletedProcess[str]) -> None:
    assert place.processes() == []


def test_a_finished_run_is_not_run_again(place: Place, trained: subprocess.CompletedProcess[str]) -> None:
    again = subprocess.run(
        [*CPT, "run", REPOSITORY / "configs" / "tiny_cpu.yaml"],
        cwd=place.work, env=place.env(), capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert again.returncode == 2
    assert "the run tiny_cpu has finished" in again.stderr


def test_tokenising_once(place: Place, trained: subprocess.CompletedProcess[str]) -> None:
    def cpt(*arguments: str) -> subprocess.CompletedProcess[str]:
        config = str(REPOSITORY / "configs" / "tiny_cpu.yaml")
        command = [*CPT, arguments[0], config, *arguments[1:]]
        return subprocess.run(command, cwd=place.work, env=place.env(), capture_output=True, text=True, check=False)

    first = cpt("tokenize")
    assert first.returncode == 0, first.stderr
    said = re.search(r"created   (\S+/tokenized/[0-9a-f]{16}): (.*)", first.stderr)
    assert said is not None, first.stderr
    folder, counted = said.groups()
    assert counted.endswith("documents end in <eos>")
    assert f"  tokens       {counted}" in trained.stdout
    assert f"identical {folder}" in cpt("tokenize").stderr
    assert f"tokenized_path: {folder}\n" in cpt("run", "name=other", "--dry-run").stdout
    assert "tokenized_path" not in cpt("run", "name=other", "train.cutoff_len=128", "--dry-run").stdout
    assert [path.name for path in Path(folder).parent.iterdir() if path.name.startswith(".")] == []


def test_a_terminated_run_leaves_nothing_and_is_resumed_from_its_checkpoint(
    place: Place, trained: subprocess.CompletedProcess[str]
) -> None:
    config = REPOSITORY / "configs" / "tiny_cpu.yaml"
    command = [*CPT, "run", str(config), "name=stopped", "train.max_steps=30", "train.save_steps=5"]
    command += ["tracking={mlflow: {}}"]
    output = place.storage / "stopped" / "output"
    with subprocess.Popen(
        command, cwd=place.work, env=place.env(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as first:
        deadline = time.monotonic() + 400
        while not (output / "checkpoint-10").exists() and first.poll() is None and time.monotonic() < deadline:
            time.sleep(0.1)
        first.send_signal(signal.SIGTERM)
        assert first.wait(120) == 130
    assert place.processes() == []
    assert json.loads((place.storage / "stopped" / "cpt" / "run.json").read_text())["state"] == "interrupted"
    changed = subprocess.run(
        [*command, "train.learning_rate=0.1", "--dry-run"],
        cwd=place.work, env=place.env(), capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    assert "learning_rate 0.003 -> 0.1: the checkpoint's 0.003 stays in force" in changed.stdout
    second = subprocess.run(
        [*CPT, "resume", str(place.storage / "stopped")],
        cwd=place.work, env=place.env(), capture_output=True, text=True, timeout=400, check=False,
    )  # fmt: skip
    assert second.returncode == 0, second.stderr[-3000:]
    assert re.search(r"resumes from .*/checkpoint-\d+, step \d+", second.stderr)
    steps = [json.loads(line)["current_steps"] for line in (output / "trainer_log.jsonl").read_text().splitlines()]
    assert steps[-1] == 30
    assert place.processes() == []
    tracked_once(place)


def tracked_once(place: Place) -> None:
    """The interrupted run and its resumption are one MLflow run, seen through the API of `cpt ui`."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [*CPT, "ui", "--storage", str(place.storage), "--port", str(port)]
    with subprocess.Popen(
        command, cwd=place.work, env=place.env(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as page:
        try:
            (run,) = ask_mlflow(port, "runs/search", {"experiment_ids": ["1"]}, page)["runs"]
            found = ask_mlflow(port, "experiments/search", {"filter": "name = 'stopped'", "max_results": 9}, page)
            query = {"run_id": run["info"]["run_id"], "metric_key": "loss", "max_results": 100}
            history = ask_mlflow(port, f"metrics/get-history?{urllib.parse.urlencode(query)}", None, page)["metrics"]
        finally:
            page.terminate()
            assert page.wait(60) == 130
    assert not (place.ray / "imported").exists(), (place.ray / "imported").read_text()
    assert [row["experiment_id"] for row in found["experiments"]] == ["1"]
    assert (run["info"]["run_name"], run["info"]["status"]) == ("stopped", "FINISHED")
    steps = sorted({row["step"] for row in history})
    assert (steps[0], steps[-1]) == (5, 30)
    assert {row["key"] for row in run["data"]["metrics"]} >= {
        "loss", "eval_loss", "learning_rate", "held_out_perplexity_base", "held_out_perplexity_trained",
        "tokens_trained_on",
    }  # fmt: skip
    params = {row["key"]: row["value"] for row in run["data"]["params"]}
    assert params["learning_rate"] == "0.003"
    artifacts = next((place.storage / "mlartifacts").glob(f"**/{run['info']['run_id']}/artifacts"))
    assert {path.name for path in artifacts.iterdir()} >= {"train.yaml", "run.json", "loss.png"}


def ask_mlflow(port: int, what: str, body: object, server: subprocess.Popen[bytes]) -> Any:
    """A request to MLflow's REST API, as soon as the server is there."""
    url = f"http://127.0.0.1:{port}/api/2.0/mlflow/{what}"
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    deadline = time.monotonic() + 90
    while True:
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            raise AssertionError(error.read().decode()) from None
        except OSError:
            assert server.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.5)
