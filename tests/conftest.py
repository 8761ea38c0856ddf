from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from cpt_launcher import cli

REPOSITORY = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Outcome:
    code: int
    out: str
    err: str


@pytest.fixture
def cpt(capsys: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """Runs a command line in this process."""

    def call(*arguments: str | Path) -> Outcome:
        capsys.readouterr()
        code = 0
        try:
            cli.main([str(argument) for argument in arguments])
        except SystemExit as ended:
            code = ended.code if isinstance(ended.code, int) else 0
        captured = capsys.readouterr()
        return Outcome(code, captured.out, captured.err)

    return call


@pytest.fixture
def clean_env(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """An environment without the variables that change what is planned."""
    for name in list(os.environ):
        if name.startswith(("ANYSCALE", "RAY_", "MLFLOW", "HF_")):
            monkeypatch.delenv(name)
    return monkeypatch


@pytest.fixture
def workspace(tmp_path: Path, clean_env: pytest.MonkeyPatch) -> Path:
    """A working directory with a storage, a corpus, its registry and a config for one GPU worker."""
    here = tmp_path / "work"
    (here / "dataset-configs").mkdir(parents=True)
    (here / "storage").mkdir()
    clean_env.chdir(here)
    (here / "dataset-configs" / "corpus.jsonl").write_text('{"text": "Call me Ishmael."}\n' * 100)
    entry = {"corpus": {"file_name": "corpus.jsonl", "columns": {"prompt": "text"}}}
    (here / "dataset-configs" / "dataset_info.json").write_text(json.dumps(entry))
    (here / "my.yaml").write_text(
        "name: first\n"
        f"storage: {here}/storage\n"
        "model: some/model\n"
        "dataset: corpus\n"
        "deepspeed: ds_z3_config.json\n"
        "resources: {gpus: 1}\n"
        "secrets: [HF_TOKEN]\n"
        "train: {cutoff_len: 128, bf16: true}\n"
    )
    return here


@pytest.fixture
def stand_in(workspace: Path, clean_env: pytest.MonkeyPatch) -> Callable[[], dict[str, object]]:
    """Puts the stand-in `llamafactory-cli` on PATH; the call reads what it recorded."""
    record = workspace / "called.json"
    clean_env.setattr("cpt_launcher.preflight.gpus_here", lambda: 1)
    clean_env.setenv("PATH", f"{REPOSITORY / 'tests' / 'stand_in'}{os.pathsep}{os.environ['PATH']}")
    clean_env.setenv("STAND_IN_RECORD", str(record))
    clean_env.setenv("HF_TOKEN", "hf_planted_value_123")
    return lambda: json.loads(record.read_text())
