"""Staging a large corpus beside `cp` and `sha256sum` of the same file, and staging 1,000 unchanged shards.

    python benchmarks/staging.py [GIGABYTES] [FOLDER]

The three ways are timed in turn, three times each, and compared as ratios: the machine may be shared.
"""

from __future__ import annotations

import json
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from cpt_launcher.staging import stage
from cpt_launcher.staging.dataset import Copy

REPEATS = 3
STAGE = """
import resource, sys
from pathlib import Path
from cpt_launcher.staging import stage
from cpt_launcher.staging.dataset import Copy
stage.stage([Copy(sys.argv[1], Path(sys.argv[2]), "text")], {}, Path(sys.argv[2]).parent, report=lambda _: None)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""


def write_corpus(path: Path, size: int) -> None:
    """About `size` bytes of records like web pages: some hundred to some thousand words."""
    chance = random.Random(0)
    words = ["".join(chance.choices("abcdefghijklmnopqrstuvwxyz", k=chance.randint(2, 9))) for _ in range(5000)]
    block = []
    for _ in range(2000):
        text = " ".join(chance.choices(words, k=chance.randint(100, 900)))
        block.append(json.dumps({"text": text, "url": "https://example.org/"}))
    data = ("\n".join(block) + "\n").encode()
    with path.open("wb") as file:
        for _ in range(max(1, size // len(data))):
            file.write(data)


def seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def main() -> None:
    gigabytes = float(sys.argv[1]) if len(sys.argv) > 1 else 2.0
    with tempfile.TemporaryDirectory(dir=sys.argv[2] if len(sys.argv) > 2 else None) as name:
        folder = Path(name)
        source, target = folder / "corpus.jsonl", folder / "storage" / "corpus.jsonl"
        target.parent.mkdir()
        write_corpus(source, int(gigabytes * 1e9))
        size = source.stat().st_size
        plain, ours, memory = [], [], []
        for _ in range(REPEATS):
            plain.append(seconds(lambda: subprocess.run(["cp", source, folder / "plain"], check=True)))
            plain[-1] += seconds(lambda: subprocess.check_output(["sha256sum", folder / "plain"]))
            (folder / "plain").unlink()
            for path in [target, folder / "storage" / ".cpt" / "manifest.json"]:
                path.unlink(missing_ok=True)
            began = time.perf_counter()
            memory.append(int(subprocess.check_output([sys.executable, "-c", STAGE, source, target])))
            ours.append(time.perf_counter() - began)
        ratio = statistics.median(a / b for a, b in zip(plain, ours, strict=True))
        print(f"{size / 1e9:.2f} GB: cp and sha256sum {', '.join(f'{t:.1f}' for t in plain)} s")
        print(f"staged with checks and hash {', '.join(f'{t:.1f}' for t in ours)} s, at most {max(memory)} MiB")
        print(f"throughput, staged to plain: {ratio:.2f}")
        shards(folder)


def shards(folder: Path) -> None:
    """A second staging of 1,000 unchanged shards."""
    (folder / "many").mkdir()
    for number in range(1000):
        (folder / "many" / f"{number}.jsonl").write_text('{"text": "a"}\n')
    storage = folder / "storage"
    copies = [Copy(str(path), storage / "many" / path.name, "text") for path in sorted((folder / "many").iterdir())]
    first = seconds(lambda: stage.stage(copies, {}, storage, report=lambda _: None))
    again = [seconds(lambda: stage.stage(copies, {}, storage, report=lambda _: None)) for _ in range(5)]
    print(f"1,000 shards: first {first:.2f} s, unchanged {', '.join(f'{t:.2f}' for t in again)} s")
    print(
        f"load average {os.getloadavg()[0]:.1f}, max RSS {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10} MiB"
    )


if __name__ == "__main__":
    main()
