"""Where the time until the first step goes: `cpt run`, and LLaMA-Factory alone on the YAML that it rendered.

`python benchmarks/first_step.py [CONFIG] [--rounds 3] [key=value ...]`: the two in turn, each from the start of its
process to each phase that its output shows, in seconds. Without a config, the demo on two CPU workers.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml

from cpt_launcher.runs import events
from cpt_launcher.stack import demo

ROOT = Path(__file__).resolve().parents[1]


def follow(command: list[str], env: dict[str, str]) -> dict[str, float]:
    """Seconds from the start until each phase, the first logged step, and the end."""
    began, state, found = time.monotonic(), events.Progress(1, 0), {}
    with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            now = time.monotonic() - began
            event = state.line(line, now)
            if event:
                found.setdefault(str(event["phase"]), now)
            if "'loss':" in line:
                found.setdefault("first step logged", now)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}")
    return {**found, "end": time.monotonic() - began}


def main() -> None:
    """Run what is asked for, and print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("config", nargs="?", default=str(ROOT / "configs" / "tiny_cpu.yaml"))
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--rounds", type=int, default=3)
    asked = parser.parse_args()
    rows: dict[str, list[dict[str, float]]] = {"cpt run": [], "LLaMA-Factory alone": []}
    with tempfile.TemporaryDirectory(prefix="cptf", dir="/tmp") as place:
        work = Path(place)
        (work / "ray").mkdir()
        env = {**os.environ, "RAY_TMPDIR": str(work / "ray"), "CPT_STORAGE": str(work), "PYTHONUNBUFFERED": "1"}
        more = [
            f"storage={work}",
            "train.logging_steps=1",
            "train.max_steps=3",
            "train.save_strategy='no'",
            "eval=none",
        ]
        if Path(asked.config).stem == "tiny_cpu":
            demo.make_model(work / "model")
            more.append(f"model={work / 'model'}")
        for turn in range(asked.rounds):
            name = f"r{turn}"
            command = [sys.executable, "-m", "cpt_launcher", "run", asked.config, "--raw", f"name={name}"]
            rows["cpt run"].append(follow([*command, *more, *asked.overrides], env))
            rendered = yaml.safe_load((work / name / "cpt" / "train.yaml").read_text())
            theirs = {**rendered, "ray_run_name": f"{name}-alone", "output_dir": str(work / f"{name}-alone")}
            (work / "alone.yaml").write_text(yaml.safe_dump(theirs))
            gpu = "GPU" in rendered["resources_per_worker"]
            cpus = {} if gpu else {"CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"}
            start = ["llamafactory-cli"] if gpu else [sys.executable, "-m", "cpt_launcher.stack.cpu_workers"]
            alone = follow([*start, "train", str(work / "alone.yaml")], {**env, **cpus, "USE_RAY": "1"})
            rows["LLaMA-Factory alone"].append(alone)
            print(rows, file=sys.stderr, flush=True)
    phases = sorted(rows["cpt run"][0], key=lambda phase: rows["cpt run"][0][phase])
    print(f"| until | {' | '.join(f'{name} (s), median (range)' for name in rows)} |\n| --- | --- | --- |")
    for phase in phases:
        cells = []
        for found in rows.values():
            seen = [row[phase] for row in found if phase in row]
            cells.append(f"{statistics.median(seen):.0f} ({min(seen):.0f} to {max(seen):.0f})" if seen else "-")
        print(f"| {phase} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
