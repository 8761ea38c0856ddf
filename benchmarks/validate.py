"""User CPU of `cpt --help`, `cpt validate configs/` and of validating 100 files, beside a bare `python -c pass`.

python benchmarks/validate.py
"""

from __future__ import annotations

import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
REPEATS = 7


def user_seconds(*command: str) -> float:
    """User CPU of one run of a command."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    subprocess.run(command, cwd=REPOSITORY, capture_output=True, check=False)
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before


def main() -> None:
    cpt = (sys.executable, "-m", "cpt_launcher")
    with tempfile.TemporaryDirectory() as folder:
        for number in range(100):
            source = REPOSITORY / "configs" / ("gemma3_4b.yaml" if number % 2 else "tiny_cpu.yaml")
            Path(folder, f"{number}.yaml").write_text(source.read_text())
        commands = {
            "python -c pass": (sys.executable, "-c", "pass"),
            "cpt --help": (*cpt, "--help"),
            "cpt validate configs/": (*cpt, "validate", "configs/"),
            "cpt validate, 100 files": (*cpt, "validate", folder),
        }
        print("| command | user CPU, median (s) | lowest to highest |\n| --- | --- | --- |")
        for name, command in commands.items():
            user_seconds(*command)
            times = [user_seconds(*command) for _ in range(REPEATS)]
            print(f"| `{name}` | {statistics.median(times):.2f} | {min(times):.2f} to {max(times):.2f} |")


if __name__ == "__main__":
    main()
