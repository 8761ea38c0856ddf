"""From the trained demo to a model that transformers loads, and to a verdict."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ..conftest import CPT, Place

pytestmark = pytest.mark.e2e


@pytest.fixture
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's, untrained."""
    folder = tmp_path_factory.mktemp("untrained")
    subprocess.run([sys.executable, "-c", MAKE, folder], check=True)
    return folder


MAKE = "import sys; from pathlib import Path; from cpt_launcher.stack import demo; demo.make_model(Path(sys.argv[1]))"


def cpt(place: Place, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [*CPT, *map(str, arguments)]
    return subprocess.run(command, cwd=place.work, env=place.env(), capture_output=True, text=True, check=False)


def test_the_final_model(place: Place, trained: subprocess.CompletedProcess[str], tmp_path: Path) -> None:
    done = cpt(place, "export", place.storage / "tiny_cpu", "--to", tmp_path / "model", "export_size=1")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == f"Exported step 40 to {tmp_path / 'model'}"
    assert "9 tensors are the checkpoint's; 1,214,848 parameters, float32" in lines[1]
    assert "million parameters cannot write)" in lines[2]
    assert {path.name for path in (tmp_path / "model").iterdir()} == FILES
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert str(place.work) not in (tmp_path / "model" / "README.md").read_text()
    assert by_the_textbook(tmp_path / "model").startswith("The whale")


FILES = {
    "model.safetensors", "config.json", "generation_config.json", "README.md",
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
}  # fmt: skip


def by_the_textbook(folder: Path) -> str:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    made = model.generate(**tokenizer("The whale", return_tensors="pt"), max_new_tokens=4, do_sample=False)
    return str(tokenizer.decode(made[0]))


def test_shards_that_were_not_gathered(place: Place, trained: subprocess.CompletedProcess[str], tmp_path: Path) -> None:
    """As ZeRO-3 leaves them without stage3_gather_16bit_weights_on_model_save."""
    from safetensors.torch import load_file

    run = tmp_path / "storage" / "cut"
    shutil.copytree(place.storage / "tiny_cpu", run, symlinks=True)
    known = json.loads((run / "cpt" / "run.json").read_text())
    (run / "cpt" / "run.json").write_text(json.dumps({**known, "output": str(run / "output")}))
    checkpoint = run / "output" / "checkpoint-20"
    marker = json.loads((checkpoint / "cpt-complete.json").read_text())
    marker["files"].pop("model.safetensors")
    (checkpoint / "cpt-complete.json").write_text(json.dumps(marker))
    weights = load_file(checkpoint / "model.safetensors")
    (checkpoint / "model.safetensors").unlink()
    done = cpt(place, "export", run, "--checkpoint", "20", "--dtype", "bf16", "--to", tmp_path / "model", "--json")
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)["seen"]
    assert (seen["dtype"], seen["parameters"]) == ("bfloat16", 1_214_848)
    made = load_file(tmp_path / "model" / "model.safetensors")
    assert set(made) == set(weights)
    assert all((made[name] == weights[name].bfloat16()).all() for name in made)
    assert "| Held-out loss | base model" in (tmp_path / "model" / "README.md").read_text()
    for shard in (checkpoint / "global_step20").glob("*rank_1*optim*"):
        os.truncate(shard, 100)
    marker["files"] = {name: (checkpoint / name).stat().st_size for name in marker["files"]}
    (checkpoint / "cpt-complete.json").write_text(json.dumps(marker))
    broken = cpt(place, "export", run, "--checkpoint", "20", "--to", tmp_path / "broken")
    assert (broken.returncode, "the export failed" in broken.stderr) == (1, True), broken.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "storage"]


def test_a_tokenizer_that_does_not_go_with_the_model(place: Place, model: Path, tmp_path: Path) -> None:
    """As PreTrainedTokenizerFast is by default: it returns token_type_ids."""
    run = tmp_path / "storage" / "made"
    shutil.copytree(model, run / "output")
    config = run / "output" / "tokenizer_config.json"
    settings = json.loads(config.read_text())
    names = settings.pop("model_input_names")
    config.write_text(json.dumps(settings))
    (run / "cpt").mkdir()
    (run / "cpt" / "train.yaml").write_text(f"model_name_or_path: {model}\n")
    record = {"run": "made", "state": "finished", "started": "2026-01-01T00:00:00+00:00", "output": str(run / "output")}
    (run / "cpt" / "run.json").write_text(json.dumps(record))
    refused = cpt(place, "export", run, "--to", tmp_path / "model")
    assert refused.returncode == 1
    assert "error: the tokenizer gives token_type_ids, which the model's generate() refuses" in refused.stderr
    assert f'"model_input_names": {json.dumps(names)}' in refused.stderr
    assert f"the tokenizer_config.json in {tmp_path / 'model'} " in refused.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["storage"]
    # What it says to do.
    assert cpt(place, "export", run, "--to", tmp_path / "model", "--no-check").returncode == 0
    made = tmp_path / "model" / "tokenizer_config.json"
    made.write_text(json.dumps({**json.loads(made.read_text()), "model_input_names": names}))
    assert by_the_textbook(tmp_path / "model").startswith("The whale")


def test_did_it_learn(place: Place, trained: subprocess.CompletedProcess[str]) -> None:
    done = cpt(place, "eval", place.storage / "tiny_cpu", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    points = [
        json.loads(line) for line in (place.storage / "tiny_cpu/output/trainer_log.jsonl").read_text().splitlines()
    ]
    losses = [point["eval_loss"] for point in points if "eval_loss" in point]
    assert found["base_loss"] == pytest.approx(losses[0], abs=1e-4)
    assert found["loss"] == pytest.approx(losses[-1], abs=1e-4)
    assert found["data"].startswith("eval_dataset: moby_dick@random-5pc-of-135-seed-42-")
    assert found["trained_share"] == 0
    assert found["tokens"] % 256 == 0
    assert json.loads((place.storage / "tiny_cpu" / "cpt" / "eval.json").read_text()) == found


def test_what_it_was_trained_on_is_not_called_held_out(place: Place, trained: subprocess.CompletedProcess[str]) -> None:
    done = cpt(place, "eval", place.storage / "tiny_cpu", "--dataset", "moby_dick")
    assert done.returncode == 0, done.stderr
    assert "tokens of moby_dick, 95% of which are in the run's training data" in done.stdout
    assert "held-out" not in done.stdout
