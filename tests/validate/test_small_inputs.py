"""Small inputs stay small: each ends soon and in little memory, in a message of the contract.

Time is not measured, since that depends on what else the machine does: comparisons are counted, and what is refused
for its size says so.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from cpt_launcher.config import suggest
from cpt_launcher.validate import files
from cpt_launcher.validate import report as findings
from cpt_launcher.validate.files import Options

BYTES = 1_000_000_000  # each takes about 100 MB


def bounded(*command: str) -> subprocess.CompletedProcess[str]:
    """A command in a process that gets no more memory than `BYTES`."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (BYTES, BYTES))

    return subprocess.run(command, capture_output=True, text=True, check=False, preexec_fn=limit, timeout=300)


def cpt(*arguments: str) -> subprocess.CompletedProcess[str]:
    done = bounded(sys.executable, "-m", "cpt_launcher", *arguments)
    assert "Traceback" not in done.stderr, done.stderr[-2000:]
    return done


def merge_bomb(levels: int) -> str:
    inner = "{a: 1}"
    for level in range(levels):
        inner = f"{{<<: [&l{level} {inner}, *l{level}]}}"
    return inner


WIDE = "base: &b {" + ", ".join(f"k{n}: 1" for n in range(5000)) + "}\nname: x\nm:\n  <<: [" + "*b, " * 5000 + "*b]\n"


FILES = {
    "merges in merges": (f"name: {merge_bomb(45)}", "`<<` inside `<<`, too deeply"),
    "a wide merge": (WIDE, "too many values (anchors expanded)"),
    "a merge of itself": ("name: &a {<<: *a}", "`<<` inside `<<`, too deeply"),
    "base 60": ("storage: " + "1:" * 300_000 + "1", "a number of 600,001 characters"),
    "digits": ("storage: " + "1" * 600_000, "a number of 600,000 characters"),
    "a long float": ("storage: " + "1" * 600_000 + ".5", "a number of 600,002 characters"),
    "arguments": ("name: x\ntrain:\n" + "".join(f"  cutof_len{n}: 1\n" for n in range(24_000)), "has no argument"),
    "keys": ("".join(f"nam{n}: 1\n" for n in range(24_000)) + "name: x\n", "unknown key"),
    "datasets": (
        "{name: x, storage: /s, model: m/m, resources: {cpus: 1}, dataset: ["
        + ", ".join(f"my_cpt_c{n}" for n in range(20_000))
        + "]}",
        "no dataset",
    ),
    "deepspeed": (
        json.dumps(
            {
                "train_micro_batch_size_per_gpu": "auto",
                **{f"train_bath_size{n}": 1 for n in range(12_000)},
                "zero_optimization": {f"stag{n}": 1 for n in range(12_000)},
            }
        ),
        "DeepSpeed ignores",
    ),
}


@pytest.mark.parametrize("name", FILES)
def test_a_small_file(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    text, said = FILES[name]
    path = tmp_path / f"{name}.yaml"
    path.write_text(text)
    compared: list[object] = []

    def compare(*arguments: object) -> list[str]:
        compared.append(arguments)
        return []

    monkeypatch.setattr("difflib.get_close_matches", compare)
    report = files.validate([path], Options())
    assert len(compared) <= 3 * suggest.MOST
    assert said in findings.as_text(report.findings)


def test_all_of_them_in_little_memory(tmp_path: Path) -> None:
    for name, (text, _) in FILES.items():
        (tmp_path / f"{name}.yaml").write_text(text)
    assert cpt("validate", str(tmp_path)).returncode == 2


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("train.cutoff_len=" + merge_bomb(45), "`<<` inside `<<`, too deeply"),
        ("train.run_name=" + "1:" * 50_000 + "1", "a number of 100,001 characters"),
        (".".join(["a"] * 50_000) + "=1", "nested too deeply"),
    ],
)
def test_a_long_override(workspace: Path, override: str, said: str) -> None:
    done = cpt("run", "my.yaml", override, "--dry-run")
    assert (done.returncode, said in done.stderr) == (2, True), done.stderr[-500:]


def test_a_long_override_may_be_right(workspace: Path) -> None:
    assert cpt("validate", "my.yaml", "train.run_name=" + "a" * 120_000).returncode == 0
