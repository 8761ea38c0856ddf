"""Work with the training stack in a process of its own, beside a run: its result, or why it failed."""

from __future__ import annotations

import collections
import json
from collections.abc import Callable, Mapping, Sequence

from cpt_launcher import process
from cpt_launcher.errors import CptError, InterruptedRunError, Problem, TrainingError
from cpt_launcher.explain import explain
from cpt_launcher.secrets import redact, telling, values

RESULT = "cpt-result "
HUB_TOKENS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
LINES, WORDS = 2000, 40


def needed(
    environ: Mapping[str, str],
    model: str = "/",
    secrets: Sequence[str] = (),
    *,
    remote: bool = False,
) -> dict[str, str]:
    """`environ` without secrets that the work has no need of.

    Args:
        model: a hub's may need the hub's token, and the way there (a proxy's address can hold a password); a folder
            needs neither.
        secrets: names that the config gives beside those that sound like one.
        remote: it reads data from elsewhere: all secrets stay.
    """
    if remote:
        return dict(environ)
    hidden = {*secrets, *values((), environ), *(name for name, value in environ.items() if telling(name, value))}
    if not model.startswith("/"):
        hidden -= {*HUB_TOKENS, *(name for name in environ if name.upper().endswith("_PROXY"))}
    return {name: value for name, value in environ.items() if name not in hidden}


def run(
    argv: Sequence[str], env: Mapping[str, str], task: str, where: str, hint: str, *,
    given: str = "", secrets: Sequence[str] = (), error: type[CptError] = TrainingError,
    seen: Callable[[str], None] = lambda _: None,
) -> dict[str, object]:  # fmt: skip
    """What the process says in a line of `RESULT` and JSON; empty if it says nothing of the kind.

    Args:
        task: `the export`, for messages; `where` is what it works on, `hint` is for a failure of an unknown kind.
        given: what it reads on stdin.
        secrets: names of variables whose values are not to be shown, beside those that are called like a secret.
        seen: is called with every line of its output, redacted.

    Raises:
        InterruptedRunError: a signal came.
        CptError: it failed; of the kind `error`.
    """
    lines: collections.deque[str] = collections.deque(maxlen=LINES)
    hidden = values(secrets, env)

    def keep(line: str) -> None:
        lines.append(redact(line, hidden))
        seen(lines[-1])

    exited = process.run(argv, env, keep, given=given)
    if exited.interrupted_by is not None:
        raise InterruptedRunError(Problem(f"interrupted by {exited.interrupted_by.name}", where, "nothing was kept"))
    if exited.code != 0:
        failure = explain(list(lines))
        what = failure.cause if failure else " ".join(" ".join(lines).split()[-WORDS:])
        raise error(Problem(f"{task} failed: {what}", where, (failure.hint if failure else "") or hint))
    made = [line.removeprefix(RESULT) for line in lines if line.startswith(RESULT)]
    return dict(json.loads(made[-1])) if made else {}
