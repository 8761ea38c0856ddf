"""The address of an MLflow server, and the account that may stand in it."""

from __future__ import annotations

import re
import urllib.parse
from collections.abc import Mapping

URI = "MLFLOW_TRACKING_URI"
ACCOUNT = ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD")


def apart(environ: Mapping[str, str], instead: str | None = None) -> Mapping[str, str]:
    """The environment with user and password taken out of MLFLOW_TRACKING_URI, which MLflow prints at a run's end, and
    put where its client looks for them too. A run that tracks to another address, `instead`, does not get them: they
    are not for that server. What is no valid address of a server stays as it is.
    """
    uri = environ.get(URI, "")
    if not is_server(uri) or fault_of(uri) or "@" not in (parts := urllib.parse.urlsplit(uri)).netloc:
        return environ
    clean = {**environ, URI: parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()}
    if parts.username and parts.password and not instead:
        given = (parts.username, parts.password)
        clean |= dict(zip(ACCOUNT, map(urllib.parse.unquote, given), strict=True))
    return clean


def is_server(uri: str) -> bool:
    """Whether it is a server's address, not a file's or a database's."""
    return uri.startswith(("http://", "https://"))


def fault_of(uri: str) -> str | None:
    """Why this is no address of a server. Nothing of it is in the answer, since a password may be."""
    what = "it is no valid URL (a password with any of /?#[]@ in it must be percent-encoded)"
    try:
        parts = urllib.parse.urlsplit(uri)
        is_whole = bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        return what
    if not is_whole or "@" in parts.path + parts.query + parts.fragment or re.search(r"\s", uri):
        return what
    return "it has a query or a fragment" if parts.query or parts.fragment else None
