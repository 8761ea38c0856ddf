"""Tokens a second of configs on this machine's GPUs, through `cpt run` itself, the guide's recipe always among them.

`python benchmarks/throughput.py [CONFIG ...] [--gpus N] [--shape MODEL] [--steps 15] [--rounds 1] [key=value ...]`:
builds a random model of the shape (of `cpt plan`'s table), runs each config for a few steps with it on the demo's
corpus, nothing saved, nothing tracked, and prints a table. `key=value` overrides go to every config but the guide's.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml

from cpt_launcher import demo, shape

ROOT = Path(__file__).resolve().parents[1]
LEAST = 2.0  # seconds
GUIDE = ROOT / "configs" / "gemma3_4b.yaml"
ALONE = [sys.executable, "-W", "ignore", str(ROOT / "benchmarks" / "gpu.py")]


def build(folder: Path, model: str) -> shape.Shape:
    """A random model of a shape, in bf16, with the demo's tokenizer."""
    demo.make_model(folder)
    (folder / "model.safetensors").unlink()
    subprocess.run([*ALONE, "model", str(folder), model], check=True)
    return shape.find(model)


def run(config: Path, work: Path, name: str, gpus: int, steps: int, more: list[str]) -> dict[str, float]:
    """One run: seconds a step, seconds to the first step, GiB at the peak of rank 0, the last loss."""
    overrides = [
        f"name={name}", f"storage={work / 'storage'}", f"model={work / 'model'}", "dataset=moby_dick", "secrets=[]",
        "tracking=none", "retries=0", "eval=none", "env={RECORD_VRAM: '1'}", "train.template=empty",
        f"resources={{gpus: {gpus}}}", f"train.max_steps={steps}", "train.logging_steps=1", "train.save_strategy='no'",
        "train.plot_loss=false", "train.preprocessing_num_workers=1", "train.warmup_ratio=0.0", *more,
    ]  # fmt: skip
    began = time.time()
    command = [sys.executable, "-m", "cpt_launcher", "run", str(config), *overrides]
    done = subprocess.run(
        command, env={**os.environ, "RAY_TMPDIR": str(work / "ray")}, capture_output=True, text=True, check=False
    )
    if done.returncode:
        return {"failed": done.returncode, "words": done.stderr[-1500:]}  # type: ignore[dict-item]
    place = work / "storage" / name
    events = [json.loads(line) for line in (place / "cpt" / "events.jsonl").read_text().splitlines()]
    seen = [event for event in events if event["event"] == "step"]
    rows = [json.loads(line) for line in (place / "output" / "trainer_log.jsonl").read_text().splitlines()]
    rendered = yaml.safe_load((place / "cpt" / "train.yaml").read_text())
    tokens = rendered["cutoff_len"] * rendered["per_device_train_batch_size"]
    tokens *= rendered.get("gradient_accumulation_steps", 8)
    skipped = min(3, len(seen) - 2)  # the first steps compile kernels
    span, made = (seen[-1][key] - seen[skipped][key] for key in ("time", "step"))
    if span < LEAST:  # rows are looked at five times a second; all steps together are then the better figure
        span, made = (
            json.loads((place / "output" / "train_results.json").read_text())["train_runtime"],
            seen[-1]["step"],
        )
    return {
        "step": span / made,
        "tokens": tokens,
        "first": seen[0]["time"] - began,
        "recomputes": not rendered.get("disable_gradient_checkpointing", False),
        "peak": max((row.get("vram_allocated", 0.0) for row in rows), default=0.0),
        "loss": seen[-1]["loss"],
    }


def main() -> None:
    """Run what is asked for, and print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("configs", nargs="*")
    parser.add_argument("--gpus", type=int, default=1)
    parser.add_argument("--shape", default="google/gemma-3-4b-pt")
    parser.add_argument("--steps", type=int, default=15)
    parser.add_argument("--rounds", type=int, default=1)
    asked = parser.parse_args()
    more = [text for text in asked.configs if "=" in text]
    configs = [GUIDE, *(Path(text) for text in asked.configs if "=" not in text)]
    device, ceiling = subprocess.run(
        [*ALONE, "ceiling"], capture_output=True, text=True, check=True
    ).stdout.splitlines()  # fmt: skip
    top = float(ceiling)
    print(f"{device}; bf16 products {top / 1e12:.0f} TFLOP/s; {asked.gpus} GPUs; {asked.shape}", flush=True)
    head = ("config", "s a step", "tokens/s per GPU", "6N TFLOP/s", "of the ceiling", "hardware TFLOP/s", "peak GiB",
            "to step 1")  # fmt: skip
    print(f"| {' | '.join(head)} |\n{'| --- ' * len(head)}|", flush=True)
    with tempfile.TemporaryDirectory(prefix="cptt", dir="/tmp") as place:
        work = Path(place)
        for folder in ("ray", "storage"):
            (work / folder).mkdir()
        kind = build(work / "model", asked.shape)
        rates: dict[Path, list[float]] = {}
        for turn in range(asked.rounds):
            for number, config in reversed(list(enumerate(configs))):
                found = run(config, work, f"r{turn}-{number}", asked.gpus, asked.steps, more if number else [])
                if "failed" in found:
                    print(f"| {config.stem} | failed: {found} |", flush=True)
                    continue
                rate = found["tokens"] / found["step"]
                rates.setdefault(config, []).append(rate)
                work_done = 6 * kind.trained * rate
                again = work_done + 2 * kind.layers * kind.per_layer * rate * found["recomputes"]
                cells = (
                    config.stem, f"{found['step']:.3f}", f"{rate:,.0f}", f"{work_done / 1e12:.0f}",
                    f"{100 * work_done / top:.1f} %", f"{again / 1e12:.0f}", f"{found['peak']:.1f}",
                    f"{found['first']:.0f} s",
                )  # fmt: skip
                print(f"| {' | '.join(cells)} |", flush=True)
        base = statistics.median(rates.get(GUIDE, [0.0])) or 1.0
        for config, seen in rates.items():
            print(f"{config.stem}: {statistics.median(seen):,.0f} ({min(seen):,.0f} to {max(seen):,.0f}), "
                  f"{statistics.median(seen) / base:.1f} times the guide's")  # fmt: skip


if __name__ == "__main__":
    main()
