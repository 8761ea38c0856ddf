"""Small inputs stay small: each ends within seconds and in little memory, in a message of the contract.

Bounds are wide (each takes a fraction of a second and 100 MB), so that only growth without end goes beyond them.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from pathlib import Path

import pytest

SECONDS, BYTES = 5, 1_000_000_000


def bounded(*command: str) -> subprocess.CompletedProcess[str]:
    """A command in a process that is killed beyond `SECONDS` of CPU and gets no more memory than `BYTES`."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
        resource.setrlimit(resource.RLIMIT_AS, (BYTES, BYTES))

    return subprocess.run(command, capture_output=True, text=True, check=False, preexec_fn=limit, timeout=120)


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


@pytest.mark.parametrize(
    ("text", "said"),
    [
        pytest.param(f"name: {merge_bomb(45)}", "`<<` inside `<<`, too deeply", id="merges in merges"),
        pytest.param(WIDE, "too many values (anchors expanded)", id="a wide merge"),
        pytest.param("name: &a {<<: *a}", "`<<` inside `<<`, too deeply", id="a merge of itself"),
        pytest.param("storage: " + "1:" * 300_000 + "1", "a number of 600,001 characters", id="base 60"),
        pytest.param("storage: " + "1" * 600_000, "a number of 600,000 characters", id="digits"),
        pytest.param("storage: " + "1" * 600_000 + ".5", "a number of 600,002 characters", id="a long float"),
        pytest.param(
            "name: x\ntrain:\n" + "".join(f"  cutof_len{n}: 1\n" for n in range(24_000)), "no argument", id="arguments"
        ),
        pytest.param("".join(f"nam{n}: 1\n" for n in range(24_000)) + "name: x\n", "unknown key", id="keys"),
        pytest.param(
            "name: x\nstorage: /s\nmodel: m/m\nresources: {cpus: 1}\ndataset: ["
            + ", ".join(f"my_cpt_c{n}" for n in range(20_000))
            + "]\n",
            "no dataset",
            id="datasets",
        ),
    ],
)
def test_a_small_file(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(text)
    done = cpt("validate", str(path))
    assert done.returncode == 2, done.stderr[-500:]
    assert said in done.stdout


def test_a_deepspeed_file_of_unknown_keys(tmp_path: Path) -> None:
    path = tmp_path / "ds.json"
    path.write_text(
        json.dumps(
            {
                "train_micro_batch_size_per_gpu": "auto",
                **{f"train_bath_size{n}": 1 for n in range(12_000)},
                "zero_optimization": {f"stag{n}": 1 for n in range(12_000)},
            }
        )
    )
    done = cpt("validate", str(path))
    assert (done.returncode, "DeepSpeed ignores" in done.stdout) == (0, True), done.stderr[-500:]


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("train.cutoff_len=" + merge_bomb(45), "`<<` inside `<<`, too deeply"),
        ("train.run_name=" + "1:" * 50_000 + "1", "a number of 100,001 characters"),
        ("train.run_name=" + "a" * 120_000, "128"),
        (".".join(["a"] * 50_000) + "=1", "nested too deeply"),
    ],
)
def test_a_long_override(workspace: Path, override: str, said: str) -> None:
    for command in (("run", "my.yaml", override, "--dry-run"), ("validate", "my.yaml", override)):
        done = cpt(*command)
        assert said in done.stdout + done.stderr
        assert done.returncode == (0 if said == "128" else 2), done.stderr[-500:]
