from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from cpt_launcher.cli import app

REPOSITORY = Path(__file__).resolve().parents[1]
SECRETS = {"PLANTED_SECRET": "planted-4e1b7c", "HF_TOKEN": "hf_planted9d2f", "MLFLOW_TRACKING_TOKEN": "dapiplanted77"}
CPT = [str(Path(sys.executable).with_name("cpt"))]


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
            app.main([str(argument) for argument in arguments])
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
    snapshot = here / "hub" / "models--some--model" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("abc")
    clean_env.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(here / "hub"))
    clean_env.setenv("HF_HUB_CACHE", str(here / "hub"))
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
    clean_env.setattr("cpt_launcher.launch.preflight.gpus_here", lambda: 1)
    clean_env.setenv("PATH", f"{REPOSITORY / 'tests' / 'stand_in'}{os.pathsep}{os.environ['PATH']}")
    clean_env.setenv("STAND_IN_RECORD", str(record))
    clean_env.setenv("HF_TOKEN", "hf_planted_value_123")
    return lambda: json.loads(record.read_text())


@dataclass(frozen=True)
class Place:
    """A working directory of its own, and Ray's own temp dir (short: sockets live in it)."""

    work: Path
    ray: Path

    @property
    def storage(self) -> Path:
        return self.work / "cpt-demo"

    def env(self) -> dict[str, str]:
        hook = {"runtime_env": {"worker_process_setup_hook": "worker_probe.report"}}
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("RAY_", "ANYSCALE_"))}
        return {
            **kept,
            **SECRETS,
            "RAY_TMPDIR": str(self.ray),
            "RAY_JOB_CONFIG_JSON_ENV_VAR": json.dumps(hook),
            "PYTHONPATH": str(REPOSITORY / "tests"),
            "PROBE_DIR": str(self.probes),
        }

    @property
    def probes(self) -> Path:
        return self.ray / "probes"

    def processes(self) -> list[str]:
        """Command lines of the processes that belong to this place's Ray."""
        lines = []
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                lines.append(path.read_text(errors="replace").replace("\0", " "))
            except OSError:
                continue
        return [line for line in lines if str(self.ray) in line]

    def listening(self) -> dict[tuple[str, str], int]:
        """The addresses that this place's processes listen on now, by (program, host), with how many sockets each."""
        import psutil

        found: dict[tuple[str, str], int] = {}
        for process in psutil.process_iter():
            try:
                mine = process.environ().get("RAY_TMPDIR") == str(self.ray)
                for socket in process.net_connections("tcp") if mine else ():
                    if socket.status == psutil.CONN_LISTEN:
                        key = (process.name(), socket.laddr.ip)
                        found[key] = found.get(key, 0) + 1
            except psutil.Error:
                continue
        return found


@dataclass
class Watch:
    """What listened at any time while the demo trained."""

    listened: dict[tuple[str, str], int]


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    with tempfile.TemporaryDirectory(prefix="cpt", dir="/tmp") as ray:
        place = Place(tmp_path_factory.mktemp("work"), Path(ray))
        place.probes.mkdir()
        yield place


@pytest.fixture(scope="session")
def watch() -> Watch:
    return Watch({})


PLANTED = ("tokenize", "llamafactory", "ray", "torch", "mlflow", "deepspeed")


@pytest.fixture(scope="session")
def trained(place: Place, watch: Watch) -> subprocess.CompletedProcess[str]:
    """The demo, once for all tests, in a directory that holds nothing but modules that nobody is to import."""
    (place.work / "cpt_launcher").mkdir()
    for name in (*PLANTED, "cpt_launcher/__init__", "cpt_launcher/guard", "cpt_launcher/ray_worker"):
        marker = f"open({str(place.ray / 'imported')!r}, 'a').write(__name__ + chr(10))\n"
        (place.work / f"{name}.py").write_text(marker)
    over = threading.Event()

    def look() -> None:
        while not over.wait(0.5):
            for key, count in place.listening().items():
                watch.listened[key] = max(count, watch.listened.get(key, 0))

    looking = threading.Thread(target=look, daemon=True)
    looking.start()
    try:
        return subprocess.run(
            [*CPT, "demo"], cwd=place.work, env=place.env(), capture_output=True, text=True, timeout=900, check=False
        )
    finally:
        over.set()
        looking.join()
