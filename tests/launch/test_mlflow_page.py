"""When the page's address is said, and how the page ends; a small server of ours stands in for MLflow's."""

from __future__ import annotations

import contextlib
import os
import pty
import select
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from ..conftest import CPT, Outcome

Cpt = Callable[..., Outcome]
SERVER = """
import http.server, os, signal, sys, time

def ended(*_):
    os.write(2, b"Traceback (most recent call last):\\nKeyboardInterrupt\\n")
    sys.exit(1)

class Healthy(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if self.path == "/health" else 404)
        self.end_headers()

signal.signal(signal.SIGINT, ended)
print("INFO: starting", flush=True)
with open(os.environ["STARTED"], "w") as file:
    print(*sys.argv[1:], file=file)
time.sleep(float(os.environ["WAIT"]))
if os.environ.get("FAIL"):
    sys.exit("the schema is out of date")
address = (sys.argv[sys.argv.index("--host") + 1], int(sys.argv[sys.argv.index("--port") + 1]))
http.server.HTTPServer(address, Healthy).serve_forever()
"""


@pytest.fixture
def storage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    modules = tmp_path / "modules" / "mlflow"
    modules.mkdir(parents=True)
    (modules / "__init__.py").touch()
    (modules / "__main__.py").write_text(SERVER)
    (tmp_path / "storage").mkdir()
    (tmp_path / "storage" / "mlflow.db").touch()
    monkeypatch.setenv("PYTHONPATH", str(modules.parent))
    monkeypatch.setenv("STARTED", str(tmp_path / "started"))
    monkeypatch.setenv("WAIT", "0")
    return tmp_path / "storage"


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


TERMINAL = """import fcntl, os, sys, termios
os.setsid()
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execv(sys.argv[1], sys.argv[1:])"""


def on_a_terminal(command: list[str], is_time: Callable[[str], bool]) -> tuple[int, str]:
    """Run it with a terminal of its own, and press Ctrl-C when it is time; its exit code and all that was seen."""
    ours, theirs = pty.openpty()
    argv = [sys.executable, "-c", TERMINAL, *command]
    with subprocess.Popen(argv, stdin=theirs, stdout=theirs, stderr=theirs) as process:
        os.close(theirs)
        seen, pressed, deadline = b"", False, time.monotonic() + 60
        while time.monotonic() < deadline:
            if not pressed and is_time(seen.decode()):
                os.write(ours, b"\x03")
                pressed = True
            if not select.select([ours], [], [], 0.05)[0]:
                continue
            try:
                seen += os.read(ours, 65536)
            except OSError:  # Linux's way of saying that the other end is closed
                break
        else:
            process.kill()
    os.close(ours)
    return process.returncode, seen.decode()


@pytest.mark.parametrize("up", [True, False], ids=["up", "starting"])
def test_ctrl_c_ends_it_quietly(storage: Path, monkeypatch: pytest.MonkeyPatch, up: bool) -> None:
    port, started = free_port(), Path(os.environ["STARTED"])
    monkeypatch.setenv("WAIT", "0.5" if up else "50")

    def is_time(seen: str) -> bool:
        return "http://" in seen if up else started.is_file() and bool(started.read_text())

    code, seen = on_a_terminal([*CPT, "ui", "--storage", str(storage), "--port", str(port)], is_time)
    address = f"cpt: MLflow's page: http://127.0.0.1:{port} (Ctrl-C ends it)\r\n"
    start = f"cpt: starts MLflow's server on {storage}/mlflow.db\r\n"
    assert (code, seen.replace("^C", "")) == (130, start + up * address)
    assert f"--backend-store-uri sqlite:///{storage}/mlflow.db" in started.read_text()
    assert f"--host 127.0.0.1 --port {port}" in started.read_text()
    with contextlib.closing(socket.socket()) as trial:
        assert trial.connect_ex(("127.0.0.1", port)) != 0


def test_a_server_that_ends_by_itself_has_the_last_word(storage: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAIL", "1")
    command = [*CPT, "ui", "--storage", str(storage), "--port", str(free_port())]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 4, done.stderr
    assert "cpt: the schema is out of date\nerror: MLflow's server ended (1)\n" in done.stderr
    assert "http://" not in done.stderr


def test_a_port_that_is_taken(cpt: Cpt, storage: Path) -> None:
    """What answers there already is not taken for the page."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        done = cpt("ui", "--storage", storage, "--port", str(port))
    assert (done.code, f"127.0.0.1:{port}" in done.err, "--port" in done.err) == (4, True, True)
    assert not Path(os.environ["STARTED"]).exists()
