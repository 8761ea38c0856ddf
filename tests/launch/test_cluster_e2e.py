"""A real Ray cluster that is there before the run: two raylets of this machine as its nodes."""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import hashlib
import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cpt_launcher.launch import cluster, nodes
from cpt_launcher.layout import Layout
from cpt_launcher.plan.plan import Plan

from ..conftest import CPT, REPOSITORY, SECRETS, Place

pytestmark = pytest.mark.e2e
RAY = [str(Path(sys.executable).with_name("ray")), "start", "--block", "--disable-usage-stats"]
LOOK = "from cpt_launcher.stack.probe import NAMESPACE, _client; print(_client().internal_kv_keys(b'', NAMESPACE))"


@dataclasses.dataclass(frozen=True)
class Head:
    address: str
    dashboard: str
    ray: Path
    secret_free: dict[str, str]

    def env(self) -> dict[str, str]:
        return {**self.secret_free, "RAY_ADDRESS": self.address}

    def held(self) -> str:
        return subprocess.run(
            [sys.executable, "-c", LOOK], env=self.env(), capture_output=True, text=True, check=True
        ).stdout.strip()  # fmt: skip

    def held_keys(self) -> list[str]:
        return [key.decode() for key in ast.literal_eval(self.held())]


def start(
    arguments: list[str], env: dict[str, str], log: Path, prefix: tuple[str, ...] = ()
) -> subprocess.Popen[bytes]:
    with log.open("wb") as file:
        return subprocess.Popen([*prefix, *arguments], env=env, stdout=file, stderr=file, start_new_session=True)


def answers(address: str, process: subprocess.Popen[bytes], log: Path) -> None:
    host, _, port = address.rpartition(":")
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        assert process.poll() is None, log.read_text()
        with socket.socket() as probe:
            probe.settimeout(1)
            if probe.connect_ex((host, int(port))) == 0 and "Ray runtime started" in log.read_text():
                return
        time.sleep(0.2)
    raise AssertionError(log.read_text())


def end(process: subprocess.Popen[bytes]) -> None:
    """`ray start --block` ends its daemons when it is asked to."""
    process.terminate()
    try:
        process.wait(30)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@pytest.fixture(scope="module")
def head(place: Place) -> Iterator[Head]:
    with tempfile.TemporaryDirectory(prefix="cpt", dir="/tmp") as folder:
        port, dashboard = free_port(), free_port()
        kept = {
            key: value
            for key, value in place.env().items()
            if key not in (*SECRETS, "RAY_JOB_CONFIG_JSON_ENV_VAR", "PROBE_DIR")
        }
        path = f"{Path(sys.executable).parent}{os.pathsep}{kept['PATH']}"  # a job's entrypoint says `python`
        env = {**kept, "RAY_TMPDIR": folder, "PATH": path}
        log = Path(folder, "head.log")
        arguments = ["--head", f"--port={port}", "--num-cpus=2", "--num-gpus=0", f"--dashboard-port={dashboard}"]
        process = start([*RAY, *arguments], env, log)
        try:
            answers(f"127.0.0.1:{port}", process, log)
            yield Head(f"127.0.0.1:{port}", f"http://127.0.0.1:{dashboard}", Path(folder), env)
        finally:
            end(process)


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def plan(storage: Path, text: str = "", workers: int = 1) -> Plan:
    layout = Layout(storage, "r")
    return Plan(Path("c.yaml"), layout, text, (), {}, str(storage), workers, "cpu", None)


def test_a_node_says_what_it_has(head: Head, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    there = cluster.probe(plan(tmp_path), head.env())
    assert there.address.rpartition(":")[2] == head.address.rpartition(":")[2]
    (node,) = there.nodes
    assert (node.error, node.storage_error, node.shared, node.launcher, node.model) == ("", "", True, True, True)
    assert node.resources["CPU"] == 2
    assert node.versions["ray"] == "2.48.0"
    assert nodes.problems(plan(tmp_path, "resources_per_worker: {CPU: 1}", 2), there) == []
    assert [name for name, _ in nodes.problems(plan(tmp_path, "resources_per_worker: {TPU: 1}"), there)] == [
        "resources"
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]
    described = subprocess.run([*CPT, "doctor"], env=head.env(), capture_output=True, text=True, check=False)
    assert f"{there.address}; {node.host}: CPU 2" in described.stdout, described.stdout


def test_a_node_with_another_folder_of_the_same_name(head: Head, tmp_path: Path) -> None:
    storage, log = tmp_path / "storage", tmp_path / "node.log"
    storage.mkdir()
    (storage / "config.json").write_text("{}")
    prefix = ("unshare", "--mount", "sh", "-c", f'mount -t tmpfs tmpfs {storage} && exec "$@"', "sh")
    if subprocess.run([*prefix, "true"], capture_output=True, check=False).returncode:
        pytest.skip("no mount namespace can be made here")
    with tempfile.TemporaryDirectory(prefix="cpt", dir="/tmp") as folder:
        arguments = [*RAY, f"--address={head.address}", "--num-cpus=1"]
        process = start(arguments, {**head.secret_free, "RAY_TMPDIR": folder}, log, prefix)
        try:
            answers(head.address, process, log)
            there = cluster.probe(plan(storage), head.env())
            assert sorted((node.shared, node.model) for node in there.nodes) == [(False, False), (True, True)]
            assert [name for name, _ in nodes.problems(plan(storage, "resources_per_worker: {CPU: 1}"), there)] == [
                "storage-on-workers", "model-on-workers"
            ]  # fmt: skip
        finally:
            end(process)
    assert [path.name for path in storage.iterdir()] == ["config.json"]


def test_secrets_leave_the_memory_however_their_holder_ends(head: Head) -> None:
    with cluster.holding({"A": "1"}, head.env()) as key:
        assert key in head.held()
    assert head.held() == "[]"
    holding = "with cluster.holding({'A': '1'}, dict(os.environ)) as key:"
    child = f"import os; from cpt_launcher.launch import cluster\n{holding}\n"
    for ending in ("os.kill(os.getpid(), 9)", "os.system(f'pkill -9 -P {os.getpid()} python')"):
        subprocess.run([sys.executable, "-c", child + f"    {ending}"], env=head.env(), check=False)
        deadline = time.monotonic() + 20
        while head.held() != "[]" and time.monotonic() < deadline:
            time.sleep(0.2)
        assert head.held() == "[]", ending


EXPIRED = """
import json, sys, time
from cpt_launcher.stack import probe as ray_cluster
client = ray_cluster._client()
late, good = ({"until": time.time() + seconds, "values": {"A": "1"}} for seconds in (-5, 100))
for name, value in (("late", late), ("good", good), ("older", {"A": "left behind by an older version"})):
    client.internal_kv_put(name.encode(), json.dumps(value).encode(), True, ray_cluster.NAMESPACE)
import ray
ray.init(address="auto", log_to_driver=False, logging_level="ERROR")
print(ray_cluster.receive("good"))
for name in ("late", "older", "none"):
    try:
        print(ray_cluster.receive(name))
    except RuntimeError as error:
        print(name, str(error)[:35])
"""


def test_a_holder_renews(head: Head) -> None:
    code = "from cpt_launcher.stack import probe as r; r.RENEWED = 0.2; r.hold({'A': '1'})"
    read = (
        "import sys; from cpt_launcher.stack import probe as r;"
        "print(r._until(r._client().internal_kv_get(sys.argv[1].encode(), r.NAMESPACE)))"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", code], env=head.env(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with holder:
        assert holder.stdout is not None
        key = json.loads(holder.stdout.readline())["key"]
        command = [sys.executable, "-c", read, key]
        first, second = (float(subprocess.check_output(command, env=head.env(), text=True)) for _ in range(2))
        assert holder.stdin is not None
        holder.stdin.close()
    assert time.time() < first < second
    assert (holder.returncode, head.held()) == (0, "[]")


def test_secrets_that_nobody_renews_expire_and_are_removed_by_the_next_holder(head: Head) -> None:
    command = [sys.executable, "-c", EXPIRED]
    done = subprocess.run(command, env=head.env(), capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [
        "{'A': '1'}",
        "late the launcher's secrets have expired",
        "older the launcher's secrets have expired",
        "none the launcher's secrets are not in t",
    ]
    with cluster.holding({"A": "1"}, head.env()) as key:
        assert sorted(head.held_keys()) == sorted([key, "good"])
    drop = "from cpt_launcher.stack import probe as r; r._client().internal_kv_del(b'good', False, r.NAMESPACE)"
    subprocess.run([sys.executable, "-c", drop], env=head.env(), check=True)
    assert head.held() == "[]"


@pytest.fixture
def mlflow(head: Head, tmp_path: Path) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """A real server on loopback, its address and its process."""
    port = free_port()
    database = ("--backend-store-uri", f"sqlite:///{tmp_path}/mlflow.db", "--artifacts-destination", str(tmp_path))
    command = [sys.executable, "-m", "mlflow", "server", *database, "--port", str(port), "--workers", "1"]
    log = tmp_path / "mlflow.log"
    process = start(command, head.secret_free, log)
    deadline = time.monotonic() + 90
    while "Application startup complete" not in log.read_text():
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.2)
    yield f"http://127.0.0.1:{port}", process
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def test_secrets_reach_workers_and_a_dead_tracker_ends_nothing(
    head: Head,
    place: Place,
    trained: subprocess.CompletedProcess[str],
    mlflow: tuple[str, subprocess.Popen[bytes]],
    tmp_path: Path,
) -> None:
    probes, said = tmp_path / "probes", tmp_path / "said.log"
    probes.mkdir()
    hook = {"runtime_env": {"worker_process_setup_hook": "worker_probe.report", "env_vars": {"PROBE_DIR": str(probes)}}}
    env = {
        **head.env(),
        **SECRETS,
        "RAY_JOB_CONFIG_JSON_ENV_VAR": json.dumps(hook),
        "PYTHONPATH": str(REPOSITORY / "tests"),
    }
    overrides = (
        "name=joined", "train.max_steps=8", "train.save_steps=4", "train.logging_steps=1",
        f"secrets=[{', '.join(SECRETS)}]", f"tracking={{mlflow: {{uri: '{mlflow[0]}'}}}}",
    )  # fmt: skip
    command = [*CPT, "run", str(REPOSITORY / "configs" / "tiny_cpu.yaml"), *overrides]
    with said.open("w") as file, subprocess.Popen(command, cwd=place.work, env=env, stdout=file, stderr=file) as run:
        deadline = time.monotonic() + 400
        while "cpt: step 2/8" not in said.read_text() and run.poll() is None and time.monotonic() < deadline:
            time.sleep(0.1)
        os.killpg(mlflow[1].pid, signal.SIGKILL)
        assert run.wait(400) == 0, said.read_text()[-3000:]
    text = said.read_text()
    assert "cpt: step 8/8" in text
    assert "warning: MLflow did not take the run's end" in text
    with sqlite3.connect(tmp_path / "mlflow.db") as database:
        (name,) = database.execute("select name from runs").fetchall()
        seen = database.execute("select count(*) from params where key = 'learning_rate'").fetchone()
    assert (name, seen) == (("joined",), (1,))

    hashes = [path.read_text() for path in probes.iterdir()]
    nothing, given = (hashlib.sha256(value.encode()).hexdigest() for value in ("", SECRETS["PLANTED_SECRET"]))
    # The preflight's task has none; the trial's actor and the two workers have it.
    assert hashes.count(given) >= 3
    assert set(hashes) <= {nothing, given}
    assert head.held() == "[]"
    checkpoints = list((place.storage / "joined").glob("TorchTrainer_*/checkpoint_*/checkpoint"))
    assert len(checkpoints) == 2
    assert all(path.is_symlink() for path in checkpoints)
    folders = (place.storage, head.ray, tmp_path)
    files = [path for root in folders for path in root.rglob("*") if path.is_file() and not path.is_symlink()]
    assert len(files) > 50
    found = [(path, name) for path in files for name, value in SECRETS.items() if value.encode() in path.read_bytes()]
    assert found == []


def test_the_same_run_as_a_ray_job(
    head: Head, place: Place, trained: subprocess.CompletedProcess[str], tmp_path: Path
) -> None:
    config = [str(REPOSITORY / "configs" / "tiny_cpu.yaml"), f"storage={place.storage}", "eval=none", "name=job"]
    target = ["--target", "ray", "--address", head.dashboard]

    def job(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [*CPT, "job", *config, *arguments, *target]
        env = {**head.secret_free, "RAY_ADDRESS": ""}
        return subprocess.run(
            command, cwd=place.work, env=env, capture_output=True, text=True, timeout=400, check=False
        )  # fmt: skip

    refused = job("secrets=[NOT_THERE]")  # the job's own preflight says so, and its exit code is passed on
    assert (refused.returncode, refused.stdout.count("the secret NOT_THERE is not set")) == (4, 1), refused.stderr
    assert "NOT_THERE" not in refused.stderr
    assert "error: the job's cpt run ended with exit code 4; its message is above" in refused.stderr
    done = job("train.max_steps=4", "train.save_steps=4", "train.logging_steps=1")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr
    assert "Run job finished: 4 steps" in done.stdout
    number = done.stderr.split("submitted ")[1].split()[0]
    assert job("--do", "status", "--id", number).stdout.startswith("succeeded")
    assert "Run job finished" in job("--do", "logs", "--id", number).stdout
    assert job("--do", "status", "--id", "nope").returncode == 2

    started = job("name=stopped_job", "train.max_steps=400", "--do", "start")
    assert started.returncode == 0, started.stderr
    number = started.stdout.strip()
    assert job("--do", "stop", "--id", number).returncode == 0
    ended = job("--do", "logs", "--id", number)
    assert (ended.returncode != 0, "the job stopped" in ended.stderr) == (True, True), ended.stderr


def test_over_two_nodes_of_which_one_is_lost(
    head: Head, place: Place, trained: subprocess.CompletedProcess[str], tmp_path: Path
) -> None:
    said = tmp_path / "said.log"
    overrides = (
        "name=nodes", "eval=none", "resources={nodes: 2, cpus: 2}", "train.max_steps=20", "train.save_steps=4",
        "train.logging_steps=1",
    )  # fmt: skip
    command = [*CPT, "run", str(REPOSITORY / "configs" / "tiny_cpu.yaml"), *overrides, "--retries", "2"]
    output = place.storage / "nodes" / "output"
    with tempfile.TemporaryDirectory(prefix="cpt", dir="/tmp") as folder, contextlib.ExitStack() as stack:

        def node(name: str) -> subprocess.Popen[bytes]:
            log = tmp_path / f"{name}.log"
            env = {**head.secret_free, "RAY_TMPDIR": f"{folder}/{name}"}
            Path(folder, name).mkdir()
            process = start([*RAY, f"--address={head.address}", "--num-cpus=1"], env, log)
            answers(head.address, process, log)
            stack.callback(end, process)
            return process

        alone = subprocess.run(command, cwd=place.work, env=head.env(), capture_output=True, text=True, check=False)
        assert (alone.returncode, "do not fit on a node each" in alone.stderr) == (4, True), alone.stderr
        lost = node("a")
        with said.open("w") as file, subprocess.Popen(
            command, cwd=place.work, env=head.env(), stdout=file, stderr=file
        ) as run:  # fmt: skip
            deadline = time.monotonic() + 400
            while not (output / "checkpoint-4" / "cpt-complete.json").exists() and time.monotonic() < deadline:
                assert run.poll() is None, said.read_text()
                time.sleep(0.1)
            marker = json.loads((output / "checkpoint-4" / "cpt-complete.json").read_text())
            os.killpg(lost.pid, signal.SIGKILL)  # `ray start --block`, and with it what it watches over
            end_all(f"{folder}/a")
            while "waits for the cluster" not in said.read_text() and time.monotonic() < deadline:
                assert run.poll() is None, said.read_text()
                time.sleep(0.2)
            node("b")
            assert run.wait(400) == 0, said.read_text()[-3000:]
    assert marker["workers"] == 2
    assert {name for name in marker["files"] if name.endswith("_optim_states.pt")} == {
        f"global_step4/zero_pp_rank_{rank}_mp_rank_00_optim_states.pt" for rank in (0, 1)
    }
    text = said.read_text()
    assert "resumes from" in text
    assert "cpt: step 20/20" in text
    assert "Run nodes finished: 20 steps" in text


def end_all(mark: str) -> None:
    """Kill whatever has this place in its environment: a machine that goes away."""
    for path in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            if mark.encode() in path.read_bytes() and int(path.parent.name) != os.getpid():
                os.kill(int(path.parent.name), signal.SIGKILL)
