"""MLflow: whether its server lets this account in, and one MLflow run for each run, however often it is resumed."""

from __future__ import annotations

import base64
import json
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cpt_launcher.errors import Problem

SECONDS = 5.0
ARTIFACTS = "mlartifacts"
# Its client's own patience is minutes long, and workers would wait for it.
PATIENCE = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2", "MLFLOW_HTTP_REQUEST_TIMEOUT": "10"}


def begin(uri: str, experiment: str, run: str, storage: Path, known: str | None, tags: Mapping[str, str]) -> str:
    """The id of the MLflow run that belongs to a run: the one it had, else a new one under its name. With a database
    on the storage, artifacts lie there too.

    Raises:
        Exception: MLflow's own, whatever is wrong with it.
    """
    client = _client(uri)
    found = client.get_experiment_by_name(experiment)
    if found is None:
        place = (storage / ARTIFACTS).as_uri() if uri.startswith("sqlite:") else None
        number = client.create_experiment(experiment, artifact_location=place)
    else:
        number = found.experiment_id
    if known and any(item.info.run_id == known for item in client.search_runs([number])):
        return known
    return str(client.create_run(number, run_name=run, tags=dict(tags)).info.run_id)


def finish(uri: str, run_id: str, state: str, files: Sequence[Path], values: Mapping[str, float]) -> None:
    """Put the files with the run, and say how it ended.

    Raises:
        Exception: MLflow's own, whatever is wrong with it.
    """
    client = _client(uri)
    for path in files:
        if path.is_file():
            client.log_artifact(run_id, str(path))
    for name, value in values.items():
        client.log_metric(run_id, name, value)
    client.set_terminated(run_id, {"finished": "FINISHED", "interrupted": "KILLED"}.get(state, "FAILED"))


def _client(uri: str) -> Any:
    from mlflow import MlflowClient

    for name, value in PATIENCE.items():  # read at each request
        os.environ.setdefault(name, value)
    for name in ("alembic", "mlflow"):  # its import has set them to say every migration
        logging.getLogger(name).setLevel(logging.WARNING)

    return MlflowClient(uri)


def reach(environ: Mapping[str, str]) -> Problem | None:
    """Ask the server in MLFLOW_TRACKING_URI for its experiments, as MLflow's client would (its REST API, 2.0), with the
    credentials of the environment. Files and databases, and Databricks by profile, are not asked.
    """
    import urllib.error
    import urllib.parse
    import urllib.request

    uri = environ.get("MLFLOW_TRACKING_URI", "")
    if not uri.startswith(("http://", "https://")):
        return None
    parts = urllib.parse.urlsplit(uri)
    place = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
    request = urllib.request.Request(
        f"{place.rstrip('/')}/api/2.0/mlflow/experiments/search",
        data=json.dumps({"max_results": 1}).encode(),
        headers={"Content-Type": "application/json", **_credentials(parts.username, parts.password, environ)},
    )
    try:
        with urllib.request.urlopen(request, timeout=SECONDS):
            return None
    except urllib.error.HTTPError as error:
        if error.code in (401, 403):
            hint = "export MLFLOW_TRACKING_TOKEN, or MLFLOW_TRACKING_USERNAME and _PASSWORD, and name them in secrets:"
            return Problem(f"MLflow does not let this account in ({error.code} {error.reason})", place, hint)
        return Problem(f"no MLflow server: {error.code} {error.reason}", place, "check tracking.mlflow.uri")
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        return Problem(f"MLflow cannot be reached: {reason}", place, "check tracking.mlflow.uri and the network")


def _credentials(user: str | None, password: str | None, environ: Mapping[str, str]) -> dict[str, str]:
    """Basic authentication, else a token (mlflow/utils/credentials.py, rest_utils.py)."""
    user = environ.get("MLFLOW_TRACKING_USERNAME") or user
    password = environ.get("MLFLOW_TRACKING_PASSWORD") or password
    if user and password:
        return {"Authorization": f"Basic {base64.b64encode(f'{user}:{password}'.encode()).decode()}"}
    token = environ.get("MLFLOW_TRACKING_TOKEN")
    return {"Authorization": f"Bearer {token}"} if token else {}
