"""Runs inside every Ray worker of the end-to-end test: says which secret it received, by its hash."""

import hashlib
import os
from pathlib import Path


def report() -> None:
    digest = hashlib.sha256(os.environ.get("PLANTED_SECRET", "").encode()).hexdigest()
    Path(os.environ["PROBE_DIR"], str(os.getpid())).write_text(digest)
