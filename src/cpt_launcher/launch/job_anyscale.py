"""The same run as an Anyscale job: its YAML, its Containerfile, and the command that submits it."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from cpt_launcher import process
from cpt_launcher.config import document
from cpt_launcher.errors import ConfigError, NotReadyError, Problem, TrainingError
from cpt_launcher.launch import job_image
from cpt_launcher.launch.bundle import ENTRYPOINT, Bundle

# Folders of one node, one cluster or this machine: gone when the job's cluster is.
_LOST = re.compile(r"/(mnt/cluster_storage|mnt/local_storage|tmp|home|root)(/|$)")


@dataclass(frozen=True)
class Options:
    """How the job is to run: `image` instead of a Containerfile, `compute` a compute config's name, `timeout_h` in
    hours.
    """

    image: str | None = None
    compute: str | None = None
    max_retries: int = 3
    timeout_h: float | None = None


def require_storage(storage: Path) -> None:
    """A job has a cluster of its own, and what lies in that cluster's folders goes with it.

    Raises:
        ConfigError: the storage is such a folder.
    """
    if not str(storage).startswith("/mnt/") or _LOST.match(str(storage)):
        what = f"{storage} is lost with the job's cluster"
        hint = "storage=/mnt/user_storage (yours) or storage=/mnt/shared_storage (everybody's of the cloud)"
        raise ConfigError(Problem(what, "storage", hint, "storage-scope"))


def job(bundle: Bundle, folder: Path, options: Options) -> dict[str, object]:
    """The job's configuration (https://docs.anyscale.com/reference/job-api). Secrets are in none of it."""
    config = bundle.config
    image = {"image_uri": options.image} if options.image else {"containerfile": str(folder / "Containerfile")}
    timeout = {"timeout_s": int(options.timeout_h * 3600)} if options.timeout_h else {}
    return {
        "name": config.name,
        **image,
        "compute_config": options.compute or {"auto_select_worker_config": True},
        "working_dir": str(folder / "files"),
        # The YAML brings its own runtime environment, which Ray would otherwise refuse beside the job's.
        "env_vars": {"RAY_OVERRIDE_JOB_RUNTIME_ENV": "1"},
        "max_retries": options.max_retries,
        **timeout,
        "tags": {"cpt-run": config.name},
        "entrypoint": ENTRYPOINT,
    }


def files(bundle: Bundle, folder: Path, options: Options) -> Bundle:
    """All that the job's folder holds: its configuration, its image, and under `files/` its working directory."""
    texts = {f"files/{name}": text for name, text in bundle.texts.items()}
    texts["job.yaml"] = as_text(job(bundle, folder, options), bundle.config.secrets)
    if options.image is None:
        texts["Containerfile"] = job_image.containerfile(packages(bundle))
    return replace(bundle, texts=texts, files={f"files/{name}": path for name, path in bundle.files.items()})


def packages(bundle: Bundle) -> job_image.Packages:
    """What the job's image must have."""
    return job_image.packages(bundle.config.train, bundle.sources)


def as_text(value: Mapping[str, object], secrets: tuple[str, ...]) -> str:
    """The YAML; secrets by name, in a comment."""
    names = ", ".join(secrets)
    note = f"# Needs {names}: set where the job gets its variables from, never here.\n" if secrets else ""
    return f"# anyscale job submit -f job.yaml\n{note}{document.dump(value)}"


def command(folder: Path) -> tuple[str, ...]:
    """What submits the job."""
    return ("anyscale", "job", "submit", "-f", str(folder / "job.yaml"))


def submit(folder: Path, program: str | None, say: process.Sink) -> None:
    """Have the `anyscale` CLI submit it.

    Raises:
        NotReadyError: there is no such CLI.
        TrainingError: it refused; its last words.
    """
    if program is None:
        hint = f"pip install anyscale, sign in with `anyscale login`, then: {shlex.join(command(folder))}"
        raise NotReadyError(Problem("the anyscale CLI is not installed", "this environment", hint))
    lines: list[str] = []

    def both(line: str) -> None:
        lines.append(line)
        say(line)

    ended = process.run((program, *command(folder)[1:]), process.environment(), both)
    if ended.code != 0:
        words = next((line for line in reversed(lines) if line.strip()), "no word")
        raise TrainingError(
            Problem(f"anyscale did not take the job: {words}", str(folder / "job.yaml"), "anyscale login")
        )
