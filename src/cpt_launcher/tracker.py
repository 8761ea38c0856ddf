"""Whether MLflow's server is there and lets this account in."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping

from cpt_launcher.errors import Problem

SECONDS = 5.0


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
