"""The same run as a Ray job: submitted, followed and ended through Ray's own client."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cpt_launcher.bundle import ENTRYPOINT
from cpt_launcher.errors import ConfigError, CptError, NotReadyError, Problem, TrainingError

POLL = 1.0  # seconds
_OURS = {1, 2, 3, 4, 5, 130}


class JobFailedError(CptError):
    """The job ended badly; the exit code is that of its `cpt run`."""

    def __init__(self, code: int, *problems: Problem) -> None:
        super().__init__(*problems)
        self.exit_code = code if code in _OURS else TrainingError.exit_code


def client(address: str) -> Any:
    """A client of the cluster's job server.

    Raises:
        NotReadyError: Ray's job client is not installed, or nothing answers there.
    """
    try:
        from ray.job_submission import JobSubmissionClient

        return JobSubmissionClient(address)
    except (ImportError, RuntimeError) as error:
        hint = "pip install 'cpt-launcher[jobs]'"
        raise NotReadyError(Problem(f"no job client: {str(error).splitlines()[0]}", address, hint)) from None
    except (ConnectionError, OSError, ValueError) as error:
        hint = "the address of the cluster's dashboard, for example http://127.0.0.1:8265"
        raise NotReadyError(Problem(f"no Ray dashboard answers: {str(error).splitlines()[0]}", address, hint)) from None


def submit(client: Any, folder: Path, name: str) -> str:
    """Upload the folder and start the job; returns its id."""
    number = f"{name}-{time.strftime('%Y%m%d-%H%M%S')}"
    return str(
        client.submit_job(
            entrypoint=ENTRYPOINT,
            submission_id=number,
            runtime_env={"working_dir": str(folder), "env_vars": {"RAY_OVERRIDE_JOB_RUNTIME_ENV": "1"}},
            metadata={"cpt-run": name},
        )
    )


def follow(client: Any, job: str, say: Callable[[str], None]) -> None:
    """Show the job's log until it has ended.

    Raises:
        JobFailedError: it did not end well, with what Ray knows: a runtime environment that could not be made stands
            in no log.
    """
    shown = 0
    while True:
        info = status(client, job)
        lines = client.get_job_logs(job).split("\n")
        over = info.status.is_terminal()
        for line in lines[shown : len(lines) if over else len(lines) - 1]:
            say(line)
        shown = max(shown, len(lines) - 1)
        if over:
            break
        time.sleep(POLL)
    if str(info.status.value) != "SUCCEEDED":
        words = (info.message or "").strip() or "no word"
        hint = "its log is above; the job's own preflight says what it lacks"
        if info.error_type:
            hint = f"{info.error_type}: the job did not start; check the address, the folder's size and the cluster"
        what = f"the job {info.status.value.lower()}: {words}"
        raise JobFailedError(info.driver_exit_code or 1, Problem(what, job, hint))


def status(client: Any, job: str) -> Any:
    """What Ray knows of a job.

    Raises:
        ConfigError: there is none of that id.
    """
    try:
        return client.get_job_info(job)
    except RuntimeError:
        known = ", ".join(str(item.submission_id) for item in client.list_jobs()[:10]) or "none"
        raise ConfigError(Problem(f"there is no job {job}", "--id", f"jobs there: {known}")) from None


def stop(client: Any, job: str) -> bool:
    """Ask the job to end; whether it was going on."""
    status(client, job)
    return bool(client.stop_job(job))
