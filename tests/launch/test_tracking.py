"""MLflow's own client against servers on loopback: one that answers as MLflow's does, and what else may stand there."""

from __future__ import annotations

import base64
import contextlib
import http.server
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cpt_launcher.config import mlflow_address
from cpt_launcher.config.launcher import RunConfig
from cpt_launcher.config.read import read
from cpt_launcher.launch import tracking
from cpt_launcher.plan.plan import plan_run

from ..conftest import Outcome

pytestmark = pytest.mark.usefixtures("clean_env")
API = "/mlflow/api/2.0/mlflow/"
RUN: dict[str, Any] = {"info": {"run_id": "r1", "run_name": "first", "experiment_id": "1"}, "data": {}}
ANSWERS: dict[str, dict[str, Any]] = {
    "experiments/search": {},
    "experiments/get-by-name": {"experiment": {"experiment_id": "1", "name": "first", "artifact_location": ""}},
    "runs/search": {},
    "runs/create": {"run": RUN},
    "runs/get": {"run": RUN},
    "runs/log-metric": {},
    "runs/update": {"run_info": RUN["info"]},
}


class Server(http.server.ThreadingHTTPServer):
    """Takes the account `u:s3cretpw` or the token `good`. Remembers requests: method, path, credentials, body."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[tuple[str, str, str | None, bytes]] = []
        self.code, self.page, self.to = 200, b"", ""

    @property
    def place(self) -> str:
        return f"127.0.0.1:{self.server_address[1]}"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        given = self.headers.get("Authorization")
        self.server.asked.append((self.command, self.path, given, body))
        if self.server.code != 200 or self.server.page:
            self.answer(self.server.code, self.server.page)
        elif given not in ("Bearer good", "Basic " + base64.b64encode(b"u:s3cretpw").decode()):
            self.answer(401, b"You are not authenticated")
        else:
            found = ANSWERS.get(self.path.partition("?")[0].removeprefix(API))
            self.answer(404 if found is None else 200, json.dumps(found or {}).encode() if found is not None else b"")

    do_GET = do_POST  # noqa: N815 (its name is given)

    def answer(self, code: int, body: bytes) -> None:
        self.send_response(code)
        if 300 <= code < 400:
            self.send_header("Location", self.server.to + self.path)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@contextlib.contextmanager
def serving() -> Iterator[Server]:
    with Server() as running:
        threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True).start()
        yield running
        running.shutdown()


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as running:
        yield running


@pytest.fixture
def other() -> Iterator[Server]:
    with serving() as running:
        yield running


def reach(uri: str, **more: str) -> str:
    """What is wrong, nothing if all is well; no answer shows the password."""
    problem = tracking.reach({"MLFLOW_TRACKING_URI": uri, **more})
    if problem is None:
        return ""
    assert "s3cret" not in problem.what + problem.where + problem.hint
    assert problem.hint
    return problem.what


def test_credentials_decide(server: Server) -> None:
    uri = f"http://{server.place}/mlflow"
    assert reach(uri, MLFLOW_TRACKING_TOKEN="good") == ""
    assert reach(uri, MLFLOW_TRACKING_USERNAME="u", MLFLOW_TRACKING_PASSWORD="s3cretpw") == ""
    assert reach(f"http://u:s3cretpw@{server.place}/mlflow") == ""
    assert reach(f"http://u:s3cret%70w@{server.place}/mlflow") == ""
    assert reach(uri, MLFLOW_TRACKING_TOKEN="bad") == "MLflow does not let this account in (401)"
    assert reach(uri) == "MLflow does not let this account in (401)"
    server.code, server.page = 403, b'{"error_code": "PERMISSION_DENIED", "message": "Permission denied"}'
    assert reach(uri, MLFLOW_TRACKING_TOKEN="good") == "MLflow does not let this account in (403)"


def test_the_account_of_the_credentials_file(server: Server, tmp_path: Path, clean_env: pytest.MonkeyPatch) -> None:
    clean_env.setenv("HOME", str(tmp_path))
    (tmp_path / ".mlflow").mkdir()
    file = tmp_path / ".mlflow" / "credentials"
    file.write_text("[mlflow]\nmlflow_tracking_username = u\nmlflow_tracking_password = s3cretpw\n")
    assert reach(f"http://{server.place}/mlflow") == ""
    file.write_text("not an ini file\n")
    assert reach(f"http://{server.place}/mlflow").startswith("MLflow cannot be asked: File contains no section headers")


@pytest.mark.parametrize("code", [301, 302, 307, 308])
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_nothing_follows_a_redirect(server: Server, other: Server, host: str, code: int) -> None:
    server.code, server.to = code, f"http://{host}:{other.server_address[1]}"
    said = f"MLflow's address sends on to another one ({code}), and credentials do not go there"
    assert reach(f"http://u:s3cretpw@{server.place}/mlflow") == said
    assert reach(f"http://{server.place}/mlflow", MLFLOW_TRACKING_TOKEN="good") == said
    assert (len(server.asked), other.asked) == (2, [])


def test_where_redirects_are_allowed_credentials_do_not_follow(server: Server, other: Server) -> None:
    """In workers and by the user's own setting, MLflow's client works, but leaves its credentials behind."""
    server.code, server.to = 307, f"http://localhost:{other.server_address[1]}"
    allowed = {"MLFLOW_ALLOW_HTTP_REDIRECTS": "true"}
    reach(f"http://u:s3cretpw@{server.place}/mlflow", **allowed)
    reach(f"http://{server.place}/mlflow", MLFLOW_TRACKING_TOKEN="good", **allowed)
    assert [given for _, _, given, _ in other.asked] == [None, None]


def test_what_is_no_server_of_mlflows(server: Server) -> None:
    account = {"MLFLOW_TRACKING_TOKEN": "good"}
    assert reach(f"http://{server.place}/other", **account) == "no MLflow server: 404"
    assert reach("http://u:s3cretpw@127.0.0.1:9") == "MLflow cannot be reached: [Errno 111] Connection refused"
    server.page = b"<html>please log in</html>"
    assert "it answers with a page, such as a login's" in reach(f"http://{server.place}/mlflow", **account)
    server.code, server.page = 503, b""
    assert reach(f"http://{server.place}/mlflow", **account) == "MLflow cannot be reached: too many 503 error responses"


@pytest.mark.parametrize(
    "uri",
    [
        "http://user:s3cret/pw@host", "http://user:12/s3cret@host", "http://user:s3cret#pw@host", "http://[",
        "http://user:s3cret pw@host", "http://user:s3cret?@host", "https://host/?token=s3cret", "http://host/#s3cret",
        "http://", "http://host:0", "http://host:99999", "http://u:s3cret[pw@host",
    ],
)  # fmt: skip
def test_an_address_that_is_none(uri: str) -> None:
    assert reach(uri).startswith("MLflow's address cannot be used")


def test_files_and_databases_are_not_asked() -> None:
    assert reach("sqlite:////s/mlflow.db") == reach("databricks") == ""
    assert tracking.reach({}) is None


def test_the_settings_are_gone_afterwards(server: Server, clean_env: pytest.MonkeyPatch) -> None:
    clean_env.setenv("MLFLOW_TRACKING_TOKEN", "bad")
    reach(f"http://u:s3cretpw@{server.place}/mlflow")
    assert {name: value for name, value in os.environ.items() if name.startswith("MLFLOW_")} == {
        "MLFLOW_TRACKING_TOKEN": "bad"
    }


def test_user_and_password_apart_from_the_address() -> None:
    uri, user, password = "MLFLOW_TRACKING_URI", *mlflow_address.ACCOUNT
    assert mlflow_address.apart({uri: "https://u%40x:p%2Fw@h:1/m"}) == {
        uri: "https://h:1/m",
        user: "u@x",
        password: "p/w",
    }
    assert mlflow_address.apart({uri: "https://u:p@h"}, instead="https://other") == {uri: "https://h"}
    for other in ({}, {uri: "https://h"}, {uri: "postgresql://u:p@db/x"}, {uri: "http://u:p/w@h"}):
        assert mlflow_address.apart(other) == other


def test_the_account_goes_where_the_address_goes(workspace: Path) -> None:
    config = read(workspace / "my.yaml", ["tracking=mlflow", "secrets=[MLFLOW_TRACKING_URI]"])
    assert isinstance(config, RunConfig)
    planned = plan_run(config, {"MLFLOW_TRACKING_URI": "https://u:p@h"})
    assert planned.secrets == ("MLFLOW_TRACKING_URI", *mlflow_address.ACCOUNT)
    assert plan_run(config, {"MLFLOW_TRACKING_URI": "https://h"}).secrets == ("MLFLOW_TRACKING_URI",)


@pytest.mark.parametrize("state", ["train", "fail"])
def test_a_tracked_run_shows_its_password_nowhere(
    cpt: Callable[..., Outcome], workspace: Path, stand_in: Callable[[], Any], server: Server,
    clean_env: pytest.MonkeyPatch, tmp_path: Path, state: str,
) -> None:  # fmt: skip
    clean_env.setenv("STAND_IN_MODE", state)
    clean_env.setenv("MLFLOW_TRACKING_URI", f"http://u:s3cretpw@{server.place}/mlflow")
    artifacts = tmp_path / "artifacts"
    clean_env.setitem(RUN["info"], "artifact_uri", str(artifacts))
    clean_env.setitem(RUN["info"], "run_id", state)  # the client remembers where a run's files go
    done = cpt("run", "my.yaml", "tracking=mlflow", "train.cutoff_len=64")
    assert done.code == (0 if state == "train" else 1), done.err
    assert f"View run first at: http://{server.place}/mlflow/#/" in done.out
    assert "warning: MLflow" not in done.err
    paths = {path.rpartition("/")[2] for _, path, _, _ in server.asked}
    assert {"search", "create", "update"} <= paths
    env = stand_in()["env"]
    assert [env[name] for name in ("MLFLOW_TRACKING_URI", *mlflow_address.ACCOUNT)] == [
        f"http://{server.place}/mlflow", "u", "s3cretpw",
    ]  # fmt: skip
    assert sorted(path.name for path in artifacts.iterdir())[-2:] == ["run.json", "train.yaml"]
    written = [path for folder in (workspace / "storage", artifacts) for path in folder.rglob("*") if path.is_file()]
    assert not [path for path in written if b"s3cretpw" in path.read_bytes()]
    told = done.out + done.err + cpt("run", "my.yaml", "tracking=mlflow", "--dry-run", "--fresh").out
    assert "s3cretpw" not in told


def test_neither_help_nor_validate_imports_mlflow(workspace: Path) -> None:
    config = workspace / "my.yaml"
    config.write_text(config.read_text() + "tracking: mlflow\n")
    code = "import sys\nfrom cpt_launcher.cli import app as cli\ntry:\n cli.main(sys.argv[1:])\n"
    code += "finally:\n print('mlflow' in sys.modules)"
    for arguments in (["--help"], ["validate", str(config)], ["run", str(config), "--dry-run"]):
        done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
        assert done.stdout.splitlines()[-1] == "False"
