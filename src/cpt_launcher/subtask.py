"""Work with the training stack in a process of its own, beside a run: its result, or why it failed."""

from __future__ import annotations

import collections
import json
from collections.abc import Mapping, Sequence

from cpt_launcher import launch
from cpt_launcher.errors import CptError, InterruptedRunError, Problem, TrainingError
from cpt_launcher.explain import explain
from cpt_launcher.secrets import redact, values

RESULT = "cpt-result "
LINES, WORDS = 2000, 40


def run(
    argv: Sequence[str], env: Mapping[str, str], task: str, where: str, hint: str, *,
    given: str = "", secrets: Sequence[str] = (), error: type[CptError] = TrainingError,
) -> dict[str, object]:  # fmt: skip
    """What the process says in a line of `RESULT` and JSON; empty if it says nothing of the kind.

    Args:
        task: `the export`, for messages; `where` is what it works on, `hint` is for a failure of an unknown kind.
        given: what it reads on stdin.
        secrets: names of variables whose values are not to be shown, beside those that are called like a secret.

    Raises:
        InterruptedRunError: a signal came.
        CptError: it failed; of the kind `error`.
    """
    lines: collections.deque[str] = collections.deque(maxlen=LINES)
    hidden = values(secrets, env)

    def keep(line: str) -> None:
        lines.append(redact(line, hidden))

    exited = launch.run(argv, env, keep, given=given)
    if exited.interrupted_by is not None:
        raise InterruptedRunError(Problem(f"interrupted by {exited.interrupted_by.name}", where, "nothing was kept"))
    if exited.code != 0:
        failure = explain(list(lines))
        what = failure.cause if failure else " ".join(" ".join(lines).split()[-WORDS:])
        raise error(Problem(f"{task} failed: {what}", where, (failure.hint if failure else "") or hint))
    made = [line.removeprefix(RESULT) for line in lines if line.startswith(RESULT)]
    return dict(json.loads(made[-1])) if made else {}
