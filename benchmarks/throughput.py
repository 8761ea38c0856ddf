"""Tokens a second of configs on this machine's GPUs, through `cpt run` itself, the guide's recipe always among them.

`python benchmarks/throughput.py [CONFIG[,key=value...] ...] [--gpus N] [--shape MODEL] [--steps 15] [--rounds 1]`:
builds a random model of the first config's shape (or another of `cpt plan`'s table), runs each config for a few steps
with it on the demo's corpus, nothing saved, nothing tracked, and prints a table. `--alone`: then the last config's YAML
by LLaMA-Factory alone. `--bare BATCH`: in each round the model's forward and backward alone, five times in a process.
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
import time
from pathlib import Path

import yaml
from first_step import follow

from cpt_launcher.launch import preflight
from cpt_launcher.plan import shape
from cpt_launcher.stack import demo

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
    phases = {event["phase"]: event["time"] - began for event in reversed(events) if event["event"] == "phase"}
    print(f"{name} {config.stem}: until {', '.join(f'{key} {phases[key]:.0f} s' for key in reversed(phases))}; "
          f"losses {[event['loss'] for event in seen]}", file=sys.stderr, flush=True)  # fmt: skip
    rendered = yaml.safe_load((place / "cpt" / "train.yaml").read_text())
    found = json.loads((place / "output" / "train_results.json").read_text())
    shutil.rmtree(place / "output")
    tokens = rendered["cutoff_len"] * rendered["per_device_train_batch_size"]
    tokens *= rendered.get("gradient_accumulation_steps", 8)
    skipped = min(3, len(seen) - 2)  # the first steps compile kernels
    span, made = (seen[-1][key] - seen[skipped][key] for key in ("time", "step"))
    if span < LEAST:  # rows are looked at five times a second; all steps together are then the better figure
        span, made = found["train_runtime"], seen[-1]["step"]
    return {
        "step": span / made,
        "tokens": tokens,
        "first": seen[0]["time"] - began,
        "recomputes": not rendered.get("disable_gradient_checkpointing", False),
        "peak": max((row.get("vram_allocated", 0.0) for row in rows), default=0.0),
        "loss": seen[-1]["loss"],
    }


def alone(work: Path, name: str) -> str:
    """LLaMA-Factory on a run's rendered YAML, without `cpt`: seconds until each phase, and its own pace."""
    place = work / "storage" / name
    output = work / "alone"
    theirs = {**yaml.safe_load((place / "cpt" / "train.yaml").read_text()), "output_dir": str(output)}
    (work / "alone.yaml").write_text(yaml.safe_dump({**theirs, "ray_run_name": "alone"}))
    env = {**os.environ, "RAY_TMPDIR": str(work / "ray"), "USE_RAY": "1", "PYTHONUNBUFFERED": "1"}
    seen = follow(["llamafactory-cli", "train", str(work / "alone.yaml")], env)
    pace = json.loads((output / "train_results.json").read_text())
    until = ", ".join(f"{key} {value:.0f} s" for key, value in seen.items())
    return f"LLaMA-Factory alone: until {until}; all steps {pace['train_runtime']:.1f} s"


def main() -> None:
    """Run what is asked for, and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("configs", nargs="*", metavar="CONFIG[,key=value...]", help="configs, with overrides")
    parser.add_argument("--gpus", type=int, default=1, help="how many of this machine's GPUs (default 1)")
    parser.add_argument("--shape", help="the model's id in cpt plan's table (default: the first config's model)")
    parser.add_argument("--steps", type=int, default=15, help="of each run (default 15)")
    parser.add_argument("--rounds", type=int, default=1, help="all of them so often, in turn (default 1)")
    parser.add_argument("--alone", action="store_true", help="the last one's YAML by LLaMA-Factory alone, too")
    parser.add_argument("--bare", type=int, default=0, metavar="BATCH", help="the model alone with that micro-batch")
    asked = parser.parse_args()
    if preflight.gpus_here() < asked.gpus:
        parser.error(f"{asked.gpus} GPUs asked for, and this machine has {preflight.gpus_here()}")
    first = (asked.configs or [str(GUIDE)])[0].split(",")[0]
    asked.shape = asked.shape or str(yaml.safe_load(Path(first).read_text())["model"])
    if asked.shape not in shape.known():
        parser.error(f"no table has the shape of {asked.shape}: --shape, one of {', '.join(shape.known())}")
    configs = [str(GUIDE), *asked.configs]
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
        rates: dict[str, list[float]] = {}
        for turn in range(asked.rounds):
            for number, text in reversed(list(enumerate(configs))):
                path, *more = text.split(",")
                name = " ".join([Path(path).stem, *more])
                found = run(Path(path), work, f"r{turn}-{number}", asked.gpus, asked.steps, more)
                if "failed" in found:
                    print(f"| {name} | failed: {found} |", flush=True)
                    continue
                rate = found["tokens"] / found["step"]
                rates.setdefault(name, []).append(rate)
                work_done = 6 * kind.trained * rate
                again = work_done + 2 * kind.layers * kind.per_layer * rate * found["recomputes"]
                cells = (
                    name, f"{found['step']:.3f}", f"{rate:,.0f}", f"{work_done / 1e12:.0f}",
                    f"{100 * work_done / top:.1f} %", f"{again / 1e12:.0f}", f"{found['peak']:.1f}",
                    f"{found['first']:.0f} s",
                )  # fmt: skip
                print(f"| {' | '.join(cells)} |", flush=True)
            if asked.bare:
                command = [*ALONE, "bare", asked.shape, str(asked.bare)]
                said = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-5:]
                spent = [asked.bare * 2048 / float(text) for text in said]
                rates.setdefault(f"the model alone, {asked.bare} x 2048", []).append(statistics.median(spent))
                print(f"the model alone: {' '.join(f'{rate:,.0f}' for rate in spent)} tokens/s", flush=True)
        base = statistics.median(rates.get(GUIDE.stem, [0.0])) or 1.0
        for name, seen in rates.items():
            print(f"{name}: {statistics.median(seen):,.0f} ({min(seen):,.0f} to {max(seen):,.0f}), "
                  f"{statistics.median(seen) / base:.1f} times the guide's", flush=True)  # fmt: skip
        if asked.alone:
            print(alone(work, f"r0-{len(configs) - 1}"), flush=True)


if __name__ == "__main__":
    main()
