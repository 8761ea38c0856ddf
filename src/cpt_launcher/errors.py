"""What can go wrong, and the exit code each kind of failure ends in.

    CptError
    ├── TrainingError      1    the training process failed, or ended without training
    ├── ConfigError        2    usage or configuration
    ├── DataError          3    the corpus or its registry entry
    ├── NotReadyError      4    environment, cluster or access
    ├── StorageError       5    the shared storage
    └── InterruptedRunError   130    SIGINT, SIGTERM or SIGHUP

Every error carries one or more `Problem`: all that was found, not the first thing found.
"""

from __future__ import annotations

from dataclasses import dataclass

from cpt_launcher import urls


@dataclass(frozen=True)
class Problem:
    """One mistake: what is wrong, where it stands (`path`, or `path:line:column`), and what to do next.

    `rule` is the stable id under which `cpt validate` reports it, see docs/rules.md. Where a text quotes a URL with a
    password or a signature in it, it is quoted without.
    """

    what: str
    where: str = ""
    hint: str = ""
    rule: str = "wrong-value"

    def __post_init__(self) -> None:
        for name in ("what", "where", "hint"):
            if any(urls.secrets(text := getattr(self, name))):
                object.__setattr__(self, name, urls.shown(text))


class CptError(Exception):
    """The root of all errors that are the user's to mend; a bug is any other exception."""

    exit_code = 1

    def __init__(self, *problems: Problem) -> None:
        super().__init__("; ".join(problem.what for problem in problems))
        self.problems = problems


class TrainingError(CptError):
    exit_code = 1


class ConfigError(CptError):
    exit_code = 2


class DataError(CptError):
    exit_code = 3


class NotReadyError(CptError):
    exit_code = 4


class StorageError(CptError):
    exit_code = 5


class InterruptedRunError(CptError):
    exit_code = 130
