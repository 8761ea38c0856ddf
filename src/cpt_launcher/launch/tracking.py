"""MLflow: whether its server lets this account in, and one MLflow run for each run, however often it is resumed."""

from __future__ import annotations

import configparser
import contextlib
import logging
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from cpt_launcher import urls
from cpt_launcher.config.mlflow_address import ACCOUNT, URI, apart, fault_of, is_server
from cpt_launcher.errors import Problem

SECONDS = "5"
ARTIFACTS = "mlartifacts"
# Its client's own patience is minutes long, and workers would wait for it.
PATIENCE = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2", "MLFLOW_HTTP_REQUEST_TIMEOUT": "10"}
# What is sent is meant for the server that was named, and a POST that is sent on becomes a GET.
STAY = {"MLFLOW_ALLOW_HTTP_REDIRECTS": "false"}


def begin(
    environ: Mapping[str, str], experiment: str, run: str, storage: Path, known: str | None, tags: Mapping[str, str]
) -> str:
    """The id of the MLflow run that belongs to a run: the one it had, else a new one under its name. With a database
    on the storage, artifacts lie there too.

    Raises:
        Exception: MLflow's own, whatever is wrong with it.
    """
    with _client(environ) as client:
        found = client.get_experiment_by_name(experiment)
        if found is None:
            place = (storage / ARTIFACTS).as_uri() if environ[URI].startswith("sqlite:") else None
            number = client.create_experiment(experiment, artifact_location=place)
        else:
            number = found.experiment_id
        if known and any(item.info.run_id == known for item in client.search_runs([number])):
            return known
        return str(client.create_run(number, run_name=run, tags=dict(tags)).info.run_id)


def finish(
    environ: Mapping[str, str], run_id: str, state: str, files: Sequence[Path], values: Mapping[str, float]
) -> None:
    """Put the files with the run, and say how it ended.

    Raises:
        Exception: MLflow's own, whatever is wrong with it.
    """
    with _client(environ) as client:
        for path in files:
            if path.is_file():
                client.log_artifact(run_id, str(path))
        for name, value in values.items():
            client.log_metric(run_id, name, value)
        client.set_terminated(run_id, {"finished": "FINISHED", "interrupted": "KILLED"}.get(state, "FAILED"))


@contextlib.contextmanager
def _client(environ: Mapping[str, str]) -> Iterator[Any]:
    """MLflow's client for the address in `environ`. It takes its settings from this process's variables at each
    request, so they are these for as long as the context lasts.
    """
    from mlflow import MlflowClient

    for name in ("alembic", "mlflow"):  # its import has set them to say every migration
        logging.getLogger(name).setLevel(logging.WARNING)
    before = {name: value for name, value in os.environ.items() if name.startswith("MLFLOW_")}
    given = {name: value for name, value in environ.items() if name.startswith("MLFLOW_")}
    try:
        _replace({**PATIENCE, **STAY, **given})
        yield MlflowClient(environ[URI])
    finally:
        _replace(before)


def _replace(settings: Mapping[str, str]) -> None:
    for name in [name for name in os.environ if name.startswith("MLFLOW_")]:
        del os.environ[name]
    os.environ.update(settings)


def reach(environ: Mapping[str, str]) -> Problem | None:
    """Ask the server in MLFLOW_TRACKING_URI for an experiment, through MLflow's own client, so that an account which
    it takes is taken here. Files and databases, and Databricks by profile, are not asked.
    """
    uri = environ.get(URI, "")
    if not is_server(uri):
        return None
    if (fault := fault_of(uri)) is not None:
        hint = f"export {URI}=http://HOST:PORT, and {' and '.join(ACCOUNT)}"
        return Problem(f"MLflow's address cannot be used: {fault}", urls.shown(uri), hint)
    environ = {"MLFLOW_HTTP_REQUEST_TIMEOUT": SECONDS, **apart(environ), "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}
    try:
        with _client(environ) as client:
            client.search_experiments(max_results=1)
    except (OSError, ValueError, ImportError, configparser.Error) as error:  # a certificate or an account in a file
        return Problem(f"MLflow cannot be asked: {error}", environ[URI], "check MLflow's settings in your environment")
    except _mlflow_error() as error:
        return _refused(error, environ[URI])
    return None


def _mlflow_error() -> type[Exception]:
    from mlflow.exceptions import MlflowException

    error: type[Exception] = MlflowException
    return error


def _refused(error: Exception, place: str) -> Problem:
    """What MLflow's error says of the server. Texts as in mlflow/utils/rest_utils.py."""
    text = str(error)
    found = re.search(r"failed with error code (\d{3})", text)
    status = int(found[1]) if found else error.get_http_status_code()  # type: ignore[attr-defined]
    if status in (401, 403):
        hint = f"export MLFLOW_TRACKING_TOKEN, or {' and '.join(ACCOUNT)}, and name them in secrets:"
        return Problem(f"MLflow does not let this account in ({status})", place, hint)
    if found and 300 <= status < 400:
        what = f"MLflow's address sends on to another one ({status}), and credentials do not go there"
        return Problem(what, place, f"set tracking.mlflow.uri to that one: curl -sI {place} shows it")
    if found:
        return Problem(f"no MLflow server: {status}", place, "check tracking.mlflow.uri")
    if "not in a valid JSON format" in text:
        what = "no MLflow server: it answers with a page, such as a login's, where MLflow sends JSON"
        return Problem(what, place, "check tracking.mlflow.uri, and how to get past what stands before the server")
    cause: BaseException = error
    while (behind := cause.__cause__ or cause.__context__) is not None:
        cause = behind
    reason = urls.shown(str(cause).splitlines()[0] if str(cause) else type(cause).__name__)
    return Problem(f"MLflow cannot be reached: {reason}", place, "check tracking.mlflow.uri and the network")
