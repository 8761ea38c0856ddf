"""Against a server on loopback that answers as MLflow's does, and with what stands behind it when it does not."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Iterator

import pytest

from cpt_launcher import tracker


class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        asked = self.headers.get("Authorization")
        there = self.path == "/mlflow/api/2.0/mlflow/experiments/search"
        self.send_response(404 if not there else 200 if asked in ("Bearer good", "Basic dTpw") else 401)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{running.server_address[1]}"
        running.shutdown()


def test_credentials_decide(server: str) -> None:
    uri = {"MLFLOW_TRACKING_URI": f"http://{server}/mlflow"}
    assert tracker.reach({**uri, "MLFLOW_TRACKING_TOKEN": "good"}) is None
    assert tracker.reach({**uri, "MLFLOW_TRACKING_USERNAME": "u", "MLFLOW_TRACKING_PASSWORD": "p"}) is None
    assert tracker.reach({"MLFLOW_TRACKING_URI": f"http://u:p@{server}/mlflow"}) is None
    refused = tracker.reach({**uri, "MLFLOW_TRACKING_TOKEN": "bad"})
    assert refused is not None
    assert "does not let this account in (401" in refused.what


def test_another_server_and_none(server: str) -> None:
    wrong = tracker.reach({"MLFLOW_TRACKING_URI": f"http://{server}/other"})
    assert wrong is not None
    assert "no MLflow server: 404" in wrong.what
    absent = tracker.reach({"MLFLOW_TRACKING_URI": "http://u:secretpw@127.0.0.1:9"})
    assert absent is not None
    assert "cannot be reached" in absent.what
    assert "secretpw" not in absent.what + absent.where


def test_files_and_databases_are_not_asked() -> None:
    assert tracker.reach({"MLFLOW_TRACKING_URI": "sqlite:////s/mlflow.db"}) is None
    assert tracker.reach({}) is None
