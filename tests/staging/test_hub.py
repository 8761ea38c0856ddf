"""Fetching from a hub: huggingface_hub's own client against a server on loopback that speaks its protocol."""

import hashlib
import http.server
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from cpt_launcher.errors import NotReadyError
from cpt_launcher.staging.hub import check_access

FILES = {"config.json": b'{"model_type": "gemma3_text"}', "model.safetensors": b"weights" * 1000, "old.bin": b"pickle"}
TEMPLATES = [{"name": "default", "template": ""}, {"name": "../../../stray", "template": ""}]
HOSTILE = {"config.json": b"{}", "tokenizer_config.json": json.dumps({"chat_template": TEMPLATES}).encode()}
SHA = "0123456789abcdef0123456789abcdef01234567"


class Hub(http.server.BaseHTTPRequestHandler):
    """One open model, one gated, and no other."""

    asked: list[str]

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        type(self).asked.append(f"{self.command} {self.path}")
        if self.path.startswith("/api/models/me/stray"):
            siblings = [{"rfilename": name} for name in ("config.json", "../../../stray.txt")]
            self.send(200, json.dumps({"id": "me/stray", "sha": SHA, "siblings": siblings}).encode())
        elif self.path.startswith("/api/models/me/hostile"):
            siblings = [{"rfilename": name} for name in HOSTILE]
            self.send(200, json.dumps({"id": "me/hostile", "sha": SHA, "siblings": siblings}).encode())
        elif self.path.startswith(f"/me/hostile/resolve/{SHA}/"):
            content = HOSTILE[self.path.rpartition("/")[2]]
            self.send(200, content, {"X-Repo-Commit": SHA, "ETag": f'"{hashlib.sha256(content).hexdigest()}"'})
        elif self.path.startswith("/api/models/me/open"):
            siblings = [{"rfilename": name} for name in FILES]
            self.send(200, json.dumps({"id": "me/open", "sha": SHA, "siblings": siblings}).encode())
        elif self.path.startswith(f"/me/open/resolve/{SHA}/"):
            content = FILES[self.path.rpartition("/")[2]]
            etag = hashlib.sha256(content).hexdigest()
            self.send(200, content, {"X-Repo-Commit": SHA, "ETag": f'"{etag}"'})
        elif "me/gated" in self.path:
            self.send(403, b"", {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access to model is restricted"})
        else:
            self.send(401, b"", {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"})

    def send(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)


@pytest.fixture
def hub() -> Iterator[tuple[str, list[str]]]:
    """The server's address, and what it is asked."""
    handler = type("Handler", (Hub,), {"asked": []})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", handler.asked
        server.shutdown()
        thread.join()


def fetch(workspace: Path, endpoint: str, model: str) -> "subprocess.CompletedProcess[str]":
    """In a process of its own: the client reads its environment when it is imported."""
    env = {**os.environ, "HF_ENDPOINT": endpoint, "HF_HOME": str(workspace / "hf"), "HF_HUB_DISABLE_TELEMETRY": "1"}
    command = [sys.executable, "-m", "cpt_launcher", "fetch-model", "my.yaml", f"model={model}"]
    return subprocess.run(command, env=env, capture_output=True, text=True, check=False)


def test_once_and_then_used_by_runs(workspace: Path, hub: tuple[str, list[str]]) -> None:
    endpoint, asked = hub
    first = fetch(workspace, endpoint, "me/open")
    folder = workspace / "storage" / "models" / "me--open"
    assert (first.returncode, f"created   {folder}" in first.stderr) == (0, True), first.stderr
    assert (folder / "model.safetensors").read_bytes() == FILES["model.safetensors"]
    assert not (folder / "old.bin").exists()  # safetensors are there
    asked.clear()
    again = fetch(workspace, endpoint, "me/open")
    assert (again.returncode, f"identical {folder}" in again.stderr) == (0, True)
    assert asked == []
    command = [sys.executable, "-m", "cpt_launcher", "run", "my.yaml", "model=me/open", "--dry-run"]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert f"model_name_or_path: {folder}\n" in shown


@pytest.mark.parametrize(
    ("model", "what", "hint"),
    [
        ("me/gated", "is gated, and this account has no access", "accept its licence on {endpoint}/me/gated"),
        ("me/absent", "the hub knows no model me/absent", "check the name"),
        ("a b/c", "not a model's name", "owner/name"),
        ("/some/folder", "the model is a folder already", "there is nothing to fetch"),
    ],
)
def test_what_cannot_be_fetched(workspace: Path, hub: tuple[str, list[str]], model: str, what: str, hint: str) -> None:
    done = fetch(workspace, hub[0], model)
    assert done.returncode == 4
    assert what in done.stderr
    assert hint.format(endpoint=hub[0]) in done.stderr
    assert "Traceback" not in done.stderr


def test_no_hub(workspace: Path) -> None:
    done = fetch(workspace, "http://127.0.0.1:9", "me/open")
    assert (done.returncode, "the hub did not send the model" in done.stderr) == (4, True)


def test_a_model_that_writes_elsewhere(workspace: Path, hub: tuple[str, list[str]]) -> None:
    for _ in range(2):  # what was downloaded does not count as fetched
        done = fetch(workspace, hub[0], "me/hostile")
        assert (done.returncode, "a chat template is called '../../../stray'" in done.stderr) == (4, True), done.stderr
    command = [sys.executable, "-m", "cpt_launcher", "run", "my.yaml", "model=me/hostile", "--dry-run"]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "model_name_or_path: me/hostile\n" in shown


def test_a_hub_that_lists_files_elsewhere(workspace: Path, hub: tuple[str, list[str]]) -> None:
    done = fetch(workspace, hub[0], "me/stray")
    assert (done.returncode, "'../../../stray.txt'" in done.stderr) == (4, True), done.stderr
    assert not list(workspace.parent.rglob("stray.txt"))
    assert not any("resolve" in asked for asked in hub[1])


def test_a_hub_that_cannot_be_asked(clean_env: pytest.MonkeyPatch, tmp_path: Path) -> None:
    clean_env.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    clean_env.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(NotReadyError) as caught:
        check_access("some/model")
    (problem,) = caught.value.problems
    assert problem.what.startswith("the hub could not be asked for the model (")
    assert "cpt fetch-model" in problem.hint
    assert "start again" not in problem.hint
