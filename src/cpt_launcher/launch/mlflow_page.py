"""MLflow's own page on a storage's database: its server, on loopback, as long as it is wanted."""

from __future__ import annotations

import collections
import http.client
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path

from cpt_launcher import child, process
from cpt_launcher.errors import InterruptedRunError, NotReadyError, Problem

HOST = "127.0.0.1"
EVERY = 0.5  # seconds between two looks whether it answers
LINES = 20  # of the server's last words
# Its job runner is for evaluations of chat models, and on Ctrl-C starts its workers again. A page has nothing to save.
_ENV = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "CPT_GRACE_SECONDS": "5"}


def serve(database: Path, artifacts: Path, port: int, say: Callable[[str], None]) -> None:
    """Run the server until a signal comes, and say its address once it answers. Of what it says itself only the last
    words are shown, and only where it ends by itself: asked to end, it and its workers print tracebacks.

    Raises:
        InterruptedRunError: the signal; without a word, as that is how it is meant to end.
        NotReadyError: the port is taken, or the server ended by itself.
    """
    _require_free(port)
    argv = (
        *child.argv("mlflow", "server", "--backend-store-uri", f"sqlite:///{database}"),
        "--artifacts-destination", str(artifacts), "--host", HOST, "--port", str(port), "--workers", "1",
    )  # fmt: skip
    words: collections.deque[str] = collections.deque(maxlen=LINES)
    watch = _Watch(port, say)
    env, folder = {**_ENV, **os.environ}, child.FOLDER  # its uvicorn imports from the folder
    ended = process.run(argv, env, words.append, watch.tick, folder=folder)
    if ended.interrupted_by is not None:
        raise InterruptedRunError
    for line in words:
        say(line)
    raise NotReadyError(Problem(f"MLflow's server ended ({ended.code})", str(database), "its last words are above"))


def _require_free(port: int) -> None:
    """Another server there would be taken for this one.

    Raises:
        NotReadyError: something listens on it.
    """
    with socket.socket() as trial:
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            trial.bind((HOST, port))
        except OSError as error:
            hint = f"another one: --port {port + 1 if port < 65535 else port - 1}"
            raise NotReadyError(Problem(f"the port cannot be used: {error.strerror}", f"{HOST}:{port}", hint)) from None


class _Watch:
    """Looks whether the server answers, until it does."""

    def __init__(self, port: int, say: Callable[[str], None]) -> None:
        self._port, self._say = port, say
        self._next, self._answered = 0.0, False

    def tick(self) -> None:
        if self._answered or time.monotonic() < self._next:
            return
        self._next = time.monotonic() + EVERY
        self._answered = _answers(self._port)
        if self._answered:
            self._say(f"MLflow's page: http://{HOST}:{self._port} (Ctrl-C ends it)")


def _answers(port: int) -> bool:
    """Whether the server says that it is well."""
    connection = http.client.HTTPConnection(HOST, port, timeout=EVERY)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status == http.client.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
