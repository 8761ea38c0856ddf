"""The same run as a Ray job: submitted, followed and ended through Ray's own client."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from cpt_launcher import process
from cpt_launcher.errors import ConfigError, CptError, NotReadyError, Problem, TrainingError
from cpt_launcher.launch.bundle import ENTRYPOINT

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
    except (ImportError, RuntimeError, OSError, ValueError, LookupError, TypeError) as error:
        if isinstance(error, ImportError) or "ray[default]" in str(error):
            hint = "pip install 'cpt-launcher[jobs]'"
            raise NotReadyError(Problem(f"no job client: {_words(error)}", address, hint)) from None
        hint = "the address of the cluster's dashboard, for example http://127.0.0.1:8265"
        raise NotReadyError(Problem(f"no Ray dashboard answers: {_words(error)}", address, hint)) from None


@contextlib.contextmanager
def _answers(what: str, where: str, hint: str) -> Iterator[None]:
    """Ray's client says all that goes wrong with a RuntimeError, a server's own failure included; the network's
    errors are OSErrors.

    Raises:
        NotReadyError: the cluster did not do it.
    """
    try:
        yield
    except (RuntimeError, OSError, ValueError, LookupError, TypeError) as error:
        raise NotReadyError(Problem(f"{what}: {_words(error)}", where, hint)) from None


def _words(error: Exception) -> str:
    """An error's first line and, of a traceback that a server sent, its last."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    text = lines[0] if len(lines) == 1 else f"{lines[0]} ... {lines[-1]}"
    return text if len(text) <= 300 else f"{text[:297]}..."


def submit(client: Any, folder: Path, name: str) -> str:
    """Upload the folder and start the job; returns its id.

    Raises:
        NotReadyError: the cluster did not take it.
    """
    number = f"{name}-{time.strftime('%Y%m%d-%H%M%S')}"
    hint = "the dashboard's own log on the head node (dashboard.log) says more; is the cluster healthy?"
    with _answers("the cluster did not take the job", number, hint):
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
        with _answers(
            "the cluster does not show the job's log", job, f"the job may still be running: --do logs --id {job}"
        ):
            lines = client.get_job_logs(job).split("\n")
        over = info.status.is_terminal()
        for line in lines[shown : len(lines) if over else len(lines) - 1]:
            say(line)
        shown = max(shown, len(lines) - 1)
        if over:
            break
        time.sleep(POLL)
    if str(info.status.value) != "SUCCEEDED":
        raise JobFailedError(info.driver_exit_code or 1, _ending(info, job))


def _ending(info: Any, job: str) -> Problem:
    """Why a job did not succeed. Where its command ran, Ray's own word is the log once more."""
    if info.driver_exit_code:
        hint = "mend what it says, and submit the job again: it resumes from its newest complete checkpoint"
        return Problem(f"the job's {describe(info).partition(': ')[2]}; its message is above", job, hint)
    hint = "a job that was stopped resumes when it is submitted again"
    if str(info.status.value) == "FAILED":
        hint = "the job did not start: check the address, the folder's size and the cluster"
    return Problem(f"the job {describe(info)}", job, hint)


def describe(info: Any) -> str:
    """A job's state in a line."""
    state, code = str(info.status.value).lower(), info.driver_exit_code
    if code:
        how = f"with exit code {code}" if code > 0 else f"by {process.signal_name(-code)}"
        return f"{state}: cpt run ended {how}"
    words = (info.message or "").strip()
    return f"{state}: {words}" if words else state


def status(client: Any, job: str) -> Any:
    """What Ray knows of a job.

    Raises:
        ConfigError: there is none of that id.
        NotReadyError: the cluster does not say.
    """
    with _answers("the cluster does not say how the job is", job, "is it healthy? Then ask again: --do status"):
        try:
            return client.get_job_info(job)
        except RuntimeError as error:
            if "status code 404" not in str(error):
                raise
            known = ", ".join(str(item.submission_id) for item in client.list_jobs()[:10]) or "none"
            raise ConfigError(Problem(f"there is no job {job}", "--id", f"jobs there: {known}")) from None


def stop(client: Any, job: str) -> bool:
    """Ask the job to end; whether it was running."""
    status(client, job)
    with _answers("the cluster did not end the job", job, "ask again: --do stop"):
        return bool(client.stop_job(job))
