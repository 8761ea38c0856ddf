"""A checkpoint as the launcher has it saved, and as Ray's callback has it: bytes and seconds, side by side.

`python benchmarks/checkpoints.py [--gpus N] [--size small|1b] [--rounds 3]`: trains a random model for two steps with a
checkpoint after each, once through `cpt run`, once with the same YAML and `llamafactory-cli` alone, and again.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import yaml

from cpt_launcher.launch.hook import VARIABLE
from cpt_launcher.stack import demo

HERE = Path(__file__).resolve().parent
SIZES = {  # of a Gemma 3 text model: hidden, feed-forward, layers, heads
    "small": (768, 3072, 12, 12),
    "1b": (1152, 6912, 26, 4),
}


def make_model(folder: Path, size: str, vocabulary: int) -> int:
    """A random model of a shape; returns its number of parameters."""
    import torch
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    demo.make_model(folder)
    (folder / "model.safetensors").unlink()
    hidden, wide, layers, heads = SIZES[size]
    shape = Gemma3TextConfig(
        vocab_size=vocabulary, hidden_size=hidden, intermediate_size=wide, num_hidden_layers=layers,
        num_attention_heads=heads, num_key_value_heads=1, head_dim=256 if size == "1b" else 64,
        max_position_embeddings=1024, sliding_window=256, pad_token_id=0, eos_token_id=1, bos_token_id=2,
    )  # fmt: skip
    torch.manual_seed(0)
    model = Gemma3ForCausalLM(shape).to(torch.bfloat16 if size == "1b" else torch.float32)
    model.save_pretrained(folder)
    return sum(parameter.numel() for parameter in model.parameters())


def config(work: Path, workers: int, *, gpu: bool, name: str) -> Path:
    """A launcher config of two steps, with a checkpoint after each."""
    train = {
        "cutoff_len": 128, "per_device_train_batch_size": 1, "gradient_accumulation_steps": 1, "max_steps": 2,
        "save_steps": 1, "logging_steps": 1, "learning_rate": 1.0e-5, "lr_scheduler_type": "constant",
        "bf16": gpu, "overwrite_cache": False, "template": "default",
    }  # fmt: skip
    value = {
        "name": name, "storage": str(work / "storage"), "model": str(work / "model"), "dataset": "moby_dick",
        "deepspeed": "ds_z3_config.json", "resources": {"gpus" if gpu else "cpus": workers}, "train": train,
    }  # fmt: skip
    path = work / f"{name}.yaml"
    path.write_text(yaml.safe_dump(value))
    return path


def measure(command: list[str], work: Path, name: str, *, chained: bool) -> list[dict[str, float]]:
    """What `on_save` took in every worker."""
    probe = work / f"{name}.jsonl"
    hook = {"runtime_env": {"worker_process_setup_hook": "checkpoint_probe.setup"}}
    ray = work / "ray"
    env = {
        **os.environ, VARIABLE: json.dumps(hook), "PROBE_FILE": str(probe), "RAY_TMPDIR": str(ray), "USE_RAY": "1",
        "PYTHONPATH": f"{HERE}{os.pathsep}{os.environ.get('PYTHONPATH', '')}", "TMPDIR": str(work / "tmp"),
    }  # fmt: skip
    if not chained and "cpu_workers" in " ".join(command):
        env |= {"CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"}
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stdout[-2000:]}{done.stderr[-4000:]}")
    return [json.loads(line) for line in probe.read_text().splitlines()]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--gpus", type=int, default=0)
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument("--rounds", type=int, default=3)
    asked = parser.parse_args()
    workers, gpu = asked.gpus or 2, asked.gpus > 0
    with tempfile.TemporaryDirectory(prefix="cptb", dir="/tmp") as place:
        work = Path(place)
        for folder in ("storage", "ray", "tmp"):
            (work / folder).mkdir()
        count = make_model(work / "model", asked.size, 262144 if asked.size == "1b" else 8192)
        rows: dict[str, list[dict[str, float]]] = {"cpt": [], "upstream": []}
        size = 0
        for turn in range(asked.rounds):
            name = f"ours{turn}"
            path = config(work, workers, gpu=gpu, name=name)
            command = [sys.executable, "-m", "cpt_launcher", "run", str(path)]
            rows["cpt"] += measure(command, work, name, chained=True)
            storage = work / "storage"
            marker = json.loads((storage / name / "output" / "checkpoint-2" / "cpt-complete.json").read_text())
            size = marker["bytes"]
            rendered = yaml.safe_load((storage / name / "cpt" / "train.yaml").read_text())
            shutil.rmtree(storage / name)
            theirs = f"theirs{turn}"
            rendered |= {"ray_run_name": theirs, "output_dir": str(storage / theirs / "output")}
            (work / "theirs.yaml").write_text(yaml.safe_dump(rendered))
            start = ["llamafactory-cli"] if gpu else [sys.executable, "-m", "cpt_launcher.stack.cpu_workers"]
            rows["upstream"] += measure([*start, "train", str(work / "theirs.yaml")], work, theirs, chained=False)
            shutil.rmtree(storage / theirs)
            print(json.dumps({"round": turn, "S": size, **rows}), file=sys.stderr, flush=True)
        print(f"{count / 1e6:,.0f} M parameters, {workers} workers, S = {size / 1e9:.2f} GB, {asked.rounds} rounds")
        print("| | bytes written per checkpoint | seconds after DeepSpeed has written its shards (median, worst) |")
        print("| --- | --- | --- |")
        for name, found in rows.items():
            saves = len(found) / workers
            extra = sum(row["bytes"] for row in found) / saves
            seconds = [row["seconds"] for row in found]
            worst = max(seconds)
            print(f"| {name} | {(size + extra) / size:.3f} S | {statistics.median(seconds):.2f}, {worst:.2f} |")


if __name__ == "__main__":
    main()
