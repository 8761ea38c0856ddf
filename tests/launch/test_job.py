"""The job's files, and that Anyscale's own classes take its YAML."""

from __future__ import annotations

import http.server
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from cpt_launcher.errors import ConfigError, DataError
from cpt_launcher.launch import bundle, job_anyscale, job_ray

from ..conftest import Outcome

Cpt = Callable[..., Outcome]


def test_the_warnings_of_validation_are_shown(cpt: Cpt, workspace: Path) -> None:
    done = cpt("job", "my.yaml", "storage=/mnt/user_storage/cpt", "train.bf16=false")
    assert (done.code, "warning: neither bf16 nor fp16" in done.err) == (0, True)


def test_an_anyscale_job(cpt: Cpt, workspace: Path, clean_env: pytest.MonkeyPatch) -> None:
    models = pytest.importorskip("anyscale.job.models")
    arguments = ("job", "my.yaml", "storage=/mnt/user_storage/cpt", "train.cutoff_len=64", "--timeout", "12")
    done = cpt(*arguments)
    assert done.code == 0, done.err
    folder = workspace / "jobs" / "first"
    assert done.out == f"anyscale job submit -f {folder}/job.yaml\n"
    found = models.JobConfig.from_yaml(str(folder / "job.yaml"))
    assert (found.name, found.max_retries, found.timeout_s) == ("first", 3, 43_200)
    assert found.entrypoint == "python -m cpt_launcher run config.yaml"
    assert found.containerfile == str(folder / "Containerfile")
    assert "HF_TOKEN" in (folder / "job.yaml").read_text()
    assert "HF_TOKEN" not in found.env_vars
    text = (folder / "Containerfile").read_text()
    assert text.startswith("FROM anyscale/ray-llm:2.48.0-py311-cu128\n# A tag can be moved.")
    for pin in ("llamafactory==0.9.3", "deepspeed==0.16.9", "hf-transfer==", "typer=="):
        assert pin in text
    config = yaml.safe_load((folder / "files" / "config.yaml").read_text())
    assert (config["storage"], config["train"]["cutoff_len"]) == ("/mnt/user_storage/cpt", 64)
    registry = json.loads((folder / "files" / "dataset-configs" / "dataset_info.json").read_text())
    assert registry["corpus"]["source"] == "data/corpus.jsonl"
    again = cpt(*arguments, "--image", "me/image:1", "--compute", "four-l40s", "--out", "other")
    assert again.code == 0, again.err
    found = models.JobConfig.from_yaml(str(workspace / "other" / "job.yaml"))
    assert (found.image_uri, found.compute_config, found.containerfile) == ("me/image:1", "four-l40s", None)


def test_the_files_run_by_themselves(cpt: Cpt, workspace: Path, tmp_path: Path) -> None:
    """As the job's entrypoint does, with nothing of this clone on the path."""
    made = bundle.make(Path("my.yaml"), ["eval={share: 0.1}"])
    bundle.write(made, tmp_path / "files")
    env = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    script = (
        "import sys; sys.path[:] = [p for p in sys.path if 'src' not in p]; sys.path.insert(0, '');"
        " sys.meta_path[:] = [f for f in sys.meta_path if 'editable' not in repr(f).lower()];"
        " import runpy; sys.argv = ['cpt', 'run', 'config.yaml', '--dry-run'];"
        " runpy.run_module('cpt_launcher', run_name='__main__')"
    )  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path / "files", env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert f"{tmp_path}/files/dataset-configs/data/corpus.jsonl\n    -> {workspace}/storage/corpus.jsonl" in done.stdout
    assert "eval_dataset: corpus@random-10pc-seed-42" in done.stdout


def test_data_that_is_there_stays_there(cpt: Cpt, workspace: Path, clean_env: pytest.MonkeyPatch) -> None:
    assert cpt("stage-data", "my.yaml").code == 0
    made = bundle.make(Path("my.yaml"), [])
    assert json.loads(made.texts["dataset-configs/dataset_info.json"]) == {}
    (workspace / "dataset-configs" / "corpus.jsonl").write_text('{"text": "another"}\n')
    clean_env.setattr(bundle, "MOST", 10)
    with pytest.raises(DataError, match="is not on"):
        bundle.make(Path("my.yaml"), [f"storage={workspace}"])


@pytest.mark.parametrize("storage", ["/mnt/cluster_storage", "/mnt/cluster_storage/x", "/tmp/x", "/data"])
def test_a_storage_that_a_job_would_lose(cpt: Cpt, workspace: Path, storage: str) -> None:
    done = cpt("job", "my.yaml", f"storage={storage}")
    assert done.code == 2
    assert "is lost with the job's cluster" in done.err
    assert "storage=/mnt/user_storage" in done.err
    assert not (workspace / "jobs").exists()


def test_a_model_of_this_machine(workspace: Path) -> None:
    (workspace / "model").mkdir()
    with pytest.raises(ConfigError, match="a folder of this machine"):
        bundle.make(Path("my.yaml"), ["model=./model"])


@pytest.mark.parametrize("storage", ["${PLACE}/cpt", "/mnt/user_storage/cpt"])
@pytest.mark.parametrize(
    ("base", "model"),
    [("some/model", "some/model"), ("/mnt/user_storage/m", "/mnt/user_storage/m"), ("~/m", None)],
)
def test_variables_of_this_machine_are_none_of_the_jobs(
    cpt: Cpt, workspace: Path, clean_env: pytest.MonkeyPatch, storage: str, base: str, model: str | None
) -> None:
    (workspace / "m").mkdir()
    (workspace / "m" / "config.json").write_text("{}")
    clean_env.setenv("HOME", str(workspace))
    clean_env.setenv("BASE", base)
    clean_env.setenv("PLACE", "/mnt/user_storage")
    done = cpt("job", "my.yaml", "model=${BASE}", f"storage={storage}")
    if model is None:
        assert (done.code, "the model is a folder of this machine" in done.err) == (2, True)
        return
    assert done.code == 0, done.err
    config = yaml.safe_load((workspace / "jobs" / "first" / "files" / "config.yaml").read_text())
    assert (config["model"], config["storage"]) == (model, "/mnt/user_storage/cpt")


def test_submitting_with_the_anyscale_command(
    cpt: Cpt, workspace: Path, clean_env: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    arguments = ("job", "my.yaml", "storage=/mnt/user_storage", "--submit")
    clean_env.setenv("PATH", str(tmp_path))
    done = cpt(*arguments)
    assert (done.code, "anyscale job submit -f" in done.err) == (4, True)
    program = tmp_path / "anyscale"
    program.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/called\necho not signed in\nexit ${{CODE:-0}}\n')
    program.chmod(0o755)
    clean_env.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert cpt(*arguments).code == 0
    assert (tmp_path / "called").read_text() == f"job submit -f {workspace}/jobs/first/job.yaml\n"
    clean_env.setenv("CODE", "1")
    done = cpt(*arguments)
    assert (done.code, "anyscale did not take the job: not signed in" in done.err) == (1, True)


def test_a_dashboard_that_is_not_there(cpt: Cpt, workspace: Path) -> None:
    pytest.importorskip("ray.job_submission")
    done = cpt("job", "my.yaml", "--target", "ray", "--address", "http://127.0.0.1:9")
    assert (done.code, "no Ray dashboard answers" in done.err) == (4, True)
    assert cpt("job", "my.yaml", "--target", "ray").code == 2


LOG = "cpt: starts\nerror: no dataset 'x' is registered\n  next:  did you mean 'y'?\n"


class Client:
    """What Ray says of a job that has ended, in its own words and class (job_supervisor.py, common.py)."""

    def __init__(self, status: str, message: str | None, code: int | None, log: str = "") -> None:
        submission = pytest.importorskip("ray.job_submission")
        details = {"message": message, "driver_exit_code": code}
        self.info = submission.JobInfo(status=submission.JobStatus(status), entrypoint="", **details)
        self.log = log

    def get_job_info(self, _: str) -> object:
        return self.info

    def get_job_logs(self, _: str) -> str:
        return self.log


def failed(code: int) -> Client:
    words = "Job entrypoint command failed with exit code {}, last available logs (truncated to 20,000 chars):\n{}"
    return Client("FAILED", words.format(code, LOG), code, LOG)


@pytest.mark.parametrize(
    ("code", "exit_code", "how"),
    [(2, 2, "with exit code 2"), (4, 4, "with exit code 4"), (77, 1, "with exit code 77"), (-9, 1, "by SIGKILL")],
)
def test_what_the_jobs_run_has_said_is_shown_once(
    capsys: pytest.CaptureFixture[str], code: int, exit_code: int, how: str
) -> None:
    client, said = failed(code), []
    with pytest.raises(job_ray.JobFailedError) as caught:
        job_ray.follow(client, "j", said.append)
    assert "\n".join(said) == LOG
    assert caught.value.exit_code == exit_code
    assert [(problem.what, problem.where) for problem in caught.value.problems] == [
        (f"the job's cpt run ended {how}; its message is above", "j")
    ]
    assert "did not start" not in caught.value.problems[0].hint
    assert job_ray.describe(client.info) == f"failed: cpt run ended {how}"


def test_a_runtime_environment_that_fails_is_shown() -> None:
    client = Client("FAILED", "runtime_env setup failed: no such package", None)
    with pytest.raises(job_ray.JobFailedError, match="the job failed: runtime_env setup failed") as caught:
        job_ray.follow(client, "j", lambda _: None)
    assert caught.value.exit_code == 1
    assert "the job did not start" in caught.value.problems[0].hint


def test_a_job_that_was_stopped() -> None:
    with pytest.raises(job_ray.JobFailedError, match="the job stopped") as caught:
        job_ray.follow(Client("STOPPED", None, None), "j", lambda _: None)
    assert (caught.value.exit_code, "resumes" in caught.value.problems[0].hint) == (1, True)


def test_the_storage_rule_is_for_jobs_only() -> None:
    job_anyscale.require_storage(Path("/mnt/shared_storage/me"))
    with pytest.raises(ConfigError):
        job_anyscale.require_storage(Path("/mnt/cluster_storage"))


ANYSCALE = ("job", "my.yaml", "storage=/mnt/user_storage/cpt")


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def ray_cluster(clean_env: pytest.MonkeyPatch) -> list[str]:
    """A cluster that takes every job; the names of what it was given."""
    given: list[str] = []

    def submit(_client: object, folder: Path, _name: str) -> str:
        given.extend(sorted(path.name for path in folder.iterdir()))
        return "job-1"

    clean_env.setattr(job_ray, "client", lambda _: None)
    clean_env.setattr(job_ray, "submit", submit)
    return given


RAY = ("job", "my.yaml", "--target", "ray", "--address", "http://127.0.0.1:9", "--do", "start")


@pytest.mark.parametrize("target", [ANYSCALE, RAY], ids=["anyscale", "ray"])
@pytest.mark.parametrize("out", ["precious", ".", "my.yaml", "link", "storage/.."])
def test_what_is_there_stays(
    cpt: Cpt, workspace: Path, ray_cluster: list[str], target: tuple[str, ...], out: str
) -> None:
    (workspace / "precious" / "files").mkdir(parents=True)
    (workspace / "precious" / "files" / "thesis.txt").write_text("years of work")
    (workspace / "precious" / "job.yaml").write_text("name: mine")
    (workspace / "link").symlink_to("precious")
    (workspace / "Containerfile").write_text("FROM mine")
    before = tree(workspace)
    done = cpt(*target, "--out", out)
    assert (done.code, "--out DIR" in done.err) == (2, True), done.err
    assert tree(workspace) == before
    assert ray_cluster == []


@pytest.mark.parametrize("target", [ANYSCALE, RAY], ids=["anyscale", "ray"])
def test_a_folder_of_our_own_is_replaced(
    cpt: Cpt, workspace: Path, ray_cluster: list[str], target: tuple[str, ...]
) -> None:
    (workspace / "empty").mkdir()
    assert cpt(*target, "--out", "empty").code == 0
    (config,) = (workspace / "empty").rglob("config.yaml")
    assert "cutoff_len: 128" in config.read_text()
    (workspace / "empty" / "__pycache__").mkdir()
    (workspace / "empty" / "__pycache__" / "x.pyc").touch()
    assert cpt(*target, "train.cutoff_len=64", "--out", "empty").code == 0
    assert "cutoff_len: 64" in config.read_text()
    assert sorted(path.name for path in workspace.iterdir() if "empty" in path.name) == ["empty"]


@pytest.mark.parametrize("target", [ANYSCALE, RAY], ids=["anyscale", "ray"])
def test_a_dry_run_shows_what_would_be_written_and_writes_nothing(
    cpt: Cpt, workspace: Path, ray_cluster: list[str], target: tuple[str, ...]
) -> None:
    before = tree(workspace)
    done = cpt(*target, "--out", "made", "--dry-run")
    assert (done.code, tree(workspace), ray_cluster) == (0, before, []), done.err
    assert f"{workspace}/dataset-configs/corpus.jsonl" in done.out
    assert cpt(*target, "--out", "made").code == 0
    texts = [path for path in (workspace / "made").rglob("*") if path.name in SHOWN]
    assert {path.name for path in texts} == (SHOWN if target == ANYSCALE else SHOWN - {"job.yaml", "Containerfile"})
    for path in texts:
        assert f"--- {path.relative_to(workspace / 'made')}\n{path.read_text().rstrip()}\n" in done.out
    (workspace / "made" / "notes.txt").write_text("mine")
    assert cpt(*target, "--out", "made", "--dry-run").code == 2


SHOWN = {"job.yaml", "Containerfile", "config.yaml", "dataset_info.json"}


@pytest.mark.parametrize("change", ["edited", "added", "linked", "unmarked"])
def test_what_the_user_did_to_it_stays(cpt: Cpt, workspace: Path, change: str) -> None:
    assert cpt(*ANYSCALE, "--out", "made").code == 0
    made = workspace / "made"
    if change == "edited":
        (made / "Containerfile").write_text("FROM mine")
    elif change == "added":
        (made / "notes.txt").write_text("mine")
    elif change == "linked":
        (made / "link").symlink_to(workspace)
    else:
        (made / bundle.MARK).write_text("[" * 100_000)
    before = tree(made)
    done = cpt(*ANYSCALE, "--out", "made")
    assert done.code == 2
    said = {"edited": "Containerfile", "added": "notes.txt", "linked": "link", "unmarked": "no earlier cpt job"}
    assert said[change] in done.err
    assert tree(made) == before


def test_a_failure_leaves_the_old_folder(cpt: Cpt, workspace: Path, clean_env: pytest.MonkeyPatch) -> None:
    assert cpt(*ANYSCALE, "--out", "made").code == 0
    before = tree(workspace)
    clean_env.setattr("shutil.copyfileobj", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    done = cpt(*ANYSCALE, "train.cutoff_len=64", "--out", "made")
    assert (done.code, "No space left" in done.err) == (5, True)
    assert tree(workspace) == before


class Dashboard(http.server.BaseHTTPRequestHandler):
    """A head node whose job server fails; only its version comes."""

    answers: dict[str, tuple[int, str]]

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        failure = (500, "Traceback (most recent call last):\n  File 'x'\nOSError: no space on the head node")
        status, body = next((answer for path, answer in self.answers.items() if path in self.path), failure)
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body.encode())

    def do_POST(self) -> None:
        self.do_GET()

    def do_PUT(self) -> None:
        self.do_GET()


VERSION = {"/api/version": (200, '{"version": "4", "ray_version": "2.48.0", "ray_commit": ""}')}


@pytest.mark.parametrize(
    ("do", "answers", "code", "said"),
    [
        ("start", VERSION, 4, "no space on the head node"),
        ("start", {**VERSION, "/api/packages": (200, "")}, 4, "the cluster did not take the job"),
        ("status", VERSION, 4, "the cluster does not say how the job is"),
        ("logs", VERSION, 4, "the cluster does not say how the job is"),
        ("stop", VERSION, 4, "the cluster does not say how the job is"),
        ("status", {**VERSION, "/api/jobs/x": (404, "no"), "/api/jobs/": (200, "[]")}, 2, "there is no job x"),
        ("status", {**VERSION, "/api/jobs/x": (404, "no")}, 4, "no space on the head node"),
        ("start", {"/api/version": (200, "[]")}, 4, "no Ray dashboard answers"),
        ("start", {"/api/version": (200, "hello")}, 4, "no Ray dashboard answers"),
        ("start", {"/api/version": (404, "")}, 4, "no Ray dashboard answers"),
        ("start", {}, 4, "no Ray dashboard answers"),
    ],
)
def test_a_job_server_that_fails(
    cpt: Cpt, workspace: Path, do: str, answers: dict[str, tuple[int, str]], code: int, said: str
) -> None:
    pytest.importorskip("ray.job_submission")
    handler = type("Handler", (Dashboard,), {"answers": answers})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        address = f"http://127.0.0.1:{server.server_port}"
        done = cpt("job", "my.yaml", "--target", "ray", "--address", address, "--do", do, "--id", "x")
        server.shutdown()
        thread.join()
    assert (done.code, said in done.err) == (code, True), done.err


@pytest.mark.parametrize("hours", ["nan", "inf", "-1", "0", "1e300"])
def test_a_timeout_that_is_none(cpt: Cpt, workspace: Path, hours: str) -> None:
    assert cpt("job", "my.yaml", "storage=/mnt/user_storage", "--timeout", hours).code == 2
