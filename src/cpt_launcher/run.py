"""The main job: preflight, stage, render, launch, and again where another try can mend it."""

from __future__ import annotations

import contextlib
import re
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from cpt_launcher import checkpoints, closing, cluster, disk, launch, manifest, preflight, record, stage, tracker
from cpt_launcher.attempt import Attempt, Show
from cpt_launcher.config import PlainConfig, RunConfig
from cpt_launcher.errors import ConfigError, DataError, InterruptedRunError, NotReadyError, Problem, TrainingError
from cpt_launcher.explain import Failure
from cpt_launcher.layout import Layout
from cpt_launcher.plan import Plan, plan_run
from cpt_launcher.results import Results
from cpt_launcher.secrets import named, redact, values

FIRST_WAIT, LONGEST_WAIT = 10.0, 300.0  # seconds before another try
# The repository may be another's, and its own settings name programs that git runs: a monitor, hooks (an index that is
# written), transports (a partial clone fetches what it lacks), filters.
_GIT = ("git", "--no-optional-locks", "-c", "core.fsmonitor=false", "-c", "core.hooksPath=/dev/null")
_NO_TRANSPORT = {"GIT_ALLOW_PROTOCOL": "none", "GIT_NO_LAZY_FETCH": "1"}
_FILTER = re.compile(r"^(local|worktree)\tfilter\..*\.(clean|process)=", re.MULTILINE)
ROOM_POLL, ROOM_WAIT = 15.0, 3600.0  # seconds for which a cluster that lost a node is waited for


@dataclass(frozen=True)
class Options:
    """How a run is to go: `retries` replaces the config's own, `skip` names preflight checks, `trust` users whose
    checkpoint may be resumed from.
    """

    fresh: bool = False
    retries: int | None = None
    skip: tuple[str, ...] = ()
    trust: tuple[str, ...] = ()


def choose_run(config: RunConfig | PlainConfig, *, fresh: bool) -> str:
    """The run's name: the config's own, or with `fresh` the first `name-N` that is not taken.

    Raises:
        ConfigError: that run has finished, or a plain YAML is to start afresh.
        NotReadyError: that run is going on.
    """
    layout = Layout(config.storage, config.name)
    if fresh and layout.run_dir.exists():
        if isinstance(config, PlainConfig):
            hint = "set another ray_run_name and output_dir in it"
            raise ConfigError(Problem("a LLaMA-Factory YAML names its own run", str(config.path), hint))
        numbers = range(2, 10_000)
        return next(name for n in numbers if not (config.storage / (name := f"{config.name}-{n}")).exists())
    known = record.read(layout) or {}
    if known.get("state") == "finished":
        hint = "run it again under a new folder with --fresh, or give it another name: name=..."
        raise ConfigError(Problem(f"the run {config.name} has finished", str(layout.run_dir), hint))
    if known.get("state") == "running":
        raise _going_on(layout, f" on {known.get('host')}, process {known.get('pid')}")
    return config.name


def run(
    config: RunConfig | PlainConfig, environ: Mapping[str, str], show: Show, options: Options | None = None
) -> tuple[Plan, Results | None]:
    """Carry a run out from start to end.

    Raises:
        CptError: see `errors`; the training process's own failure is a TrainingError.
    """
    options = options or Options()
    instead = config.mlflow.uri if isinstance(config, RunConfig) and config.mlflow else None
    environ = tracker.apart(environ, instead)
    name = choose_run(config, fresh=options.fresh)
    layout = Layout(config.storage, name)
    plan = plan_run(config, environ, name)
    ready = preflight.check(plan, environ, skip=options.skip)
    for warning in ready.warnings:
        show.step(f"warning: {warning}")
    stage_missing(plan, show)
    disk.require_no_foreign_links(layout.storage, layout.run_lock.parent)
    with disk.lock(layout.run_lock, wait=False) as mine:
        if not mine:
            raise _going_on(layout, "")
        plan = plan_run(config, environ, name)  # which tokens belong to the data is known once it is staged
        checkpoints.require_resuming_ours(plan.output, options.trust)
        plan = plan if options.retries is None else replace(plan, retries=options.retries)
        if plan.tokenized:
            show.step(f"trains on tokens that are there: {plan.train['tokenized_path']}")
        elif plan.packing:
            show.step(str(plan.packing))
        show.step(f"{disk.write_text(layout.train_yaml, plan.train_yaml):9} {layout.train_yaml}")
        handed = named(plan.secrets, environ)
        with cluster.holding(handed, environ) if ready.cluster and handed else contextlib.nullcontext() as key:
            return plan, _attempts(plan, environ, show, ready, secrets_key=key)


def _attempts(
    plan: Plan, environ: Mapping[str, str], show: Show, ready: preflight.Ready, *, secrets_key: str | None
) -> Results | None:
    """Train, and after a failure that another try can mend, train on from the newest complete checkpoint."""
    before = record.read(plan.layout) or {}
    strict = before.get("checkpoints") == "marked"
    earlier = before.get("mlflow_run")
    mlflow_run = closing.open_tracking(plan, environ, earlier if isinstance(earlier, str) else None, show.step)
    settings = closing.settings(plan.layout.run, mlflow_run, environ)
    attempt = Attempt(plan, environ, show, ready.marked, secrets_key, strict=strict, settings=settings)
    attempt.make_room()
    ours = {str(copy.target.relative_to(plan.layout.storage)) for copy in (*plan.copies, *plan.present)}
    data = {path: staged.sha256 for path, staged in manifest.read(plan.layout).items() if path in ours}
    arguments = [redact(text, values(plan.secrets, environ)) for text in sys.argv]
    known = record.start(plan, marked=ready.marked, arguments=arguments, git=_git(), data=data, mlflow_run=mlflow_run)

    def end(state: record.State, code: int, cause: str | None = None) -> None:
        closing.close(plan, environ, known, state, code, cause, show.step)

    for number in range(plan.retries + 1):
        ended = attempt.run()
        if ended.interrupted_by is not None:
            end("interrupted", InterruptedRunError.exit_code, ended.interrupted_by)
            raise _interrupted(plan, ended.interrupted_by, saved=attempt.saved())
        if ended.failure is None:
            end("finished", 0)
            return replace(ended.results, tokens=closing.tokens(plan)) if ended.results else None
        again = number < plan.retries and _mendable(ended.failure, ended.steps)
        with contextlib.suppress(Exception) if again else contextlib.nullcontext():
            attempt.make_room(disk_full=ended.failure.rule == "disk-full")
        if not again:
            end("failed", TrainingError.exit_code, ended.failure.cause)
            raise _failed(plan, ended.failure, tried=number)
        wait = min(FIRST_WAIT * 2**number, LONGEST_WAIT)
        known = record.restarted(plan.layout, known, ended.failure.cause, ended.step)
        show.step(f"failed: {ended.failure.cause}")
        show.step(f"tries again in {wait:.0f} s ({number + 1} of {plan.retries})")
        came = launch.pause(wait)
        try:
            stopped = came.name if came else _wait_for_room(plan, environ, show) if ready.cluster else None
        except NotReadyError as error:
            end("failed", error.exit_code, error.problems[0].what)
            raise
        if stopped is not None:
            end("interrupted", InterruptedRunError.exit_code, stopped)
            raise _interrupted(plan, stopped, saved=attempt.saved())
    raise AssertionError("the last attempt returns or raises")


def _wait_for_room(plan: Plan, environ: Mapping[str, str], show: Show) -> str | None:
    """After a node was lost Ray would wait for another one in silence. Returns the signal that ended the waiting.

    Raises:
        NotReadyError: the cluster has no room within an hour.
    """
    said, deadline = False, time.monotonic() + ROOM_WAIT
    while lacking := preflight.room(plan, environ):
        if time.monotonic() > deadline:
            raise NotReadyError(*lacking)
        if not said:
            show.step(f"waits for the cluster: {lacking[0].what}")
            said = True
        if (came := launch.pause(ROOM_POLL)) is not None:
            return came.name
    return None


def _mendable(failure: Failure, steps: int) -> bool:
    return failure.retry == "yes" or (failure.retry == "after-progress" and steps > 0)


def _failed(plan: Plan, failure: Failure, *, tried: int) -> TrainingError:
    where = f"{failure.origin}; " if failure.origin else ""
    after = f" (after {tried} more {'try' if tried == 1 else 'tries'})" if tried else ""
    hint = " ".join(text for text in (failure.means, failure.hint) if text)
    return TrainingError(
        Problem(
            f"training failed{after}: {failure.cause}",
            f"{where}the whole log: {plan.layout.train_log}",
            hint or "the log has the whole story, the cause first; the same command goes on from the newest checkpoint",
        )
    )


def _interrupted(plan: Plan, name: str, *, saved: bool) -> InterruptedRunError:
    hint = "the same command goes on from the newest checkpoint" if saved else "the same command starts it over"
    return InterruptedRunError(Problem(f"interrupted by {name}", str(plan.layout.train_log), hint))


def _going_on(layout: Layout, where: str) -> NotReadyError:
    hint = f"`cpt status {layout.run_dir}` shows it; wait for it, or end it"
    return NotReadyError(Problem(f"the run {layout.run} is going on{where}", str(layout.run_json), hint))


def _git() -> dict[str, object] | None:
    """The working directory's commit, and whether anything differs from it; None for the latter where that would run
    programs that the repository names itself: its filters, to compare a file with what is committed.
    """
    commit = launch.ask("git", "rev-parse", "HEAD")
    if not commit:
        return None
    settings = launch.ask("git", "config", "--list", "--show-scope")
    if settings is None or _FILTER.search(settings):
        return {"commit": commit, "changed": None}
    status = launch.ask(*_GIT, "status", "--porcelain", "--ignore-submodules=dirty", env=_NO_TRANSPORT)
    return {"commit": commit, "changed": None if status is None else bool(status)}


def stage_missing(plan: Plan, show: Show) -> None:
    """Put the run's data, registry entries and DeepSpeed JSON on the storage, where they are not there yet."""
    done = stage.stage(
        plan.copies,
        plan.entries,
        plan.layout.storage,
        report=show.staged,
        options=stage.Options(refetch=False),
    )
    _require_a_block(plan, done)


def _require_a_block(plan: Plan, done: Sequence[stage.Staged]) -> None:
    """Even at a token a byte, the data must fill a block; else LLaMA-Factory finds that out in the workers."""
    sizes = [item.text_bytes + item.documents for item in done if item.text_bytes is not None and item.documents]
    if sizes and sum(sizes) < plan.block:
        what = f"{sum(sizes):,} bytes of text cannot fill one block of {plan.block:,} tokens"
        raise DataError(Problem(what, str(plan.config), "more text, or a smaller train.cutoff_len", "data-size"))
