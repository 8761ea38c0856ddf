"""The main job: preflight, stage, render, launch, and again where another try can mend it."""

from __future__ import annotations

import contextlib
import re
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from cpt_launcher import disk, process
from cpt_launcher.config import mlflow_address
from cpt_launcher.config.launcher import PlainConfig, RunConfig
from cpt_launcher.errors import (
    ConfigError,
    DataError,
    InterruptedRunError,
    NotReadyError,
    Problem,
    StorageError,
    TrainingError,
)
from cpt_launcher.explain import Failure
from cpt_launcher.launch import closing, cluster, preflight, resumption
from cpt_launcher.launch.attempt import Attempt, Ended, Show
from cpt_launcher.layout import Layout
from cpt_launcher.plan.plan import Plan, plan_run, tokens_per_step
from cpt_launcher.runs import checkpoints, record
from cpt_launcher.runs.checkpoints import Checkpoint
from cpt_launcher.runs.results import Results
from cpt_launcher.secrets import named, redact, values
from cpt_launcher.staging import manifest, stage

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
    checkpoint may be resumed from. `name`: the run to resume, where that is not the config's own. `text` and
    `overrides`: what the config was read from, for the record.
    """

    fresh: bool = False
    retries: int | None = None
    skip: tuple[str, ...] = ()
    trust: tuple[str, ...] = ()
    name: str | None = None
    text: str | None = None
    overrides: tuple[str, ...] = ()


def choose_run(
    config: RunConfig | PlainConfig, *, fresh: bool, name: str | None = None, overrides: Sequence[str] = ()
) -> str:
    """The run's name: `name` or the config's own, or with `fresh` the first `name-N` that is not taken.

    Raises:
        ConfigError: that run has finished, or a plain YAML is to start afresh.
        NotReadyError: that run is running.
    """
    layout = Layout(config.storage, name or config.name)
    if fresh and layout.run_dir.exists():
        if isinstance(config, PlainConfig):
            hint = "set another ray_run_name and output_dir in it"
            raise ConfigError(Problem("a LLaMA-Factory YAML names its own run", str(config.path), hint))
        numbers = range(2, 10_000)
        return next(name for n in numbers if not (config.storage / (name := f"{config.name}-{n}")).exists())
    known = record.read(layout) or {}
    if known.get("state") == "finished":
        raise ConfigError(
            Problem(f"the run {layout.run} has finished", str(layout.run_dir), _after(config, layout, overrides))
        )
    if known.get("state") == "running":
        raise _running(layout, f" on {known.get('host')}, process {known.get('pid')}")
    return layout.run


def _after(config: RunConfig | PlainConfig, layout: Layout, overrides: Sequence[str]) -> str:
    """What to do where the run has finished."""
    if isinstance(config, PlainConfig):
        return f"to run it again, set another ray_run_name and output_dir in {config.path}"
    path, kept = str(config.path), [text for text in overrides if not text.startswith(("name=", "model="))]
    again = shlex.join(["cpt", "run", path, *overrides, "--fresh"])
    further = shlex.join(["cpt", "run", path, *kept, f"name={layout.run}-more", f"model={layout.output}"])
    return f"`{again}` runs it again in a new folder; `{further}` trains its model further, as a new run"


def planned(
    config: RunConfig | PlainConfig, environ: Mapping[str, str], name: str
) -> tuple[Plan, resumption.Resumption | None]:
    """The plan of a run, and what it resumes from: what the checkpoint keeps in force stands in the plan.

    Raises:
        ConfigError: see `plan_run`; or the checkpoint is for another number of workers.
        DataError: the data of an entry is not there.
    """
    plan = plan_run(config, environ, name)
    found = resumption.find(plan)
    if found is None:
        return plan, None
    plan = plan_run(resumption.kept_in_force(config, found), environ, name)
    return replace(plan, tokens_per_step=tokens_per_step({**plan.train, **found.in_force}, plan.workers)), found


def run(
    config: RunConfig | PlainConfig, environ: Mapping[str, str], show: Show, options: Options | None = None
) -> tuple[Plan, Results | None]:
    """Carry a run out from start to end.

    Raises:
        CptError: see `errors`; the training process's own failure is a TrainingError.
    """
    options = options or Options()
    instead = config.mlflow.uri if isinstance(config, RunConfig) and config.mlflow else None
    environ = mlflow_address.apart(environ, instead)
    layout = Layout(
        config.storage, choose_run(config, fresh=options.fresh, name=options.name, overrides=options.overrides)
    )
    plan = plan_run(config, environ, layout.run)
    ready = preflight.check(plan, environ, skip=options.skip)
    environ = ready.environ
    for warning in ready.warnings:
        show.step(f"warning: {warning}")
    stage_missing(plan, show)
    disk.require_no_foreign_links(layout.storage, layout.run_lock.parent)
    with disk.lock(layout.run_lock, wait=False) as mine:
        if not mine:
            raise _running(layout, "")
        plan, resumed = planned(config, environ, layout.run)  # which tokens it has is known once the data is staged
        register(plan, show)
        checkpoints.require_resuming_ours(plan.output, options.trust)
        plan = plan if options.retries is None else replace(plan, retries=options.retries)
        _tell(plan, resumed, show)
        handed = named(plan.secrets, environ)
        with cluster.holding(handed, environ) if ready.cluster and handed else contextlib.nullcontext() as key:
            attempt = Attempt(plan, environ, show, ready.marked, key)
            attempt.make_room()
            before = record.read(layout) or {}
            show.step(f"{disk.write_text(layout.train_yaml, plan.train_yaml):9} {layout.train_yaml}")
            started = _started(plan, environ, options, before, resumed, marked=ready.marked)
            with closing.recording(plan, environ, started, show.step) as running:
                running.track(before.get("mlflow_run"))
                settings = closing.settings(layout.run, running.record.mlflow_run, environ)
                attempt = replace(attempt, settings=settings)
                results = _until_it_ends(attempt, running, wait_for_room=ready.cluster is not None)
    ended = running.record
    return plan, replace(results, tokens=ended.tokens, trained_on=ended.trained_on) if results else None


def _tell(plan: Plan, resumed: resumption.Resumption | None, show: Show) -> None:
    """What is worth knowing before it starts."""
    if plan.tokenized:
        show.step(f"trains on tokens that are there: {plan.train['tokenized_path']}")
    elif plan.packing:
        show.step(str(plan.packing))
    for split in plan.splits:
        show.step(str(split))
    for change in resumed.changes if resumed else ():
        show.step(f"warning: differs from the recorded run: {change}")


def _started(
    plan: Plan,
    environ: Mapping[str, str],
    options: Options,
    before: Mapping[str, object],
    resumed: resumption.Resumption | None,
    *,
    marked: bool,
) -> record.Record:
    """Write the record of what is about to start. `before` is the record of the start before it, if there was one."""
    ours = {str(copy.target.relative_to(plan.layout.storage)) for copy in (*plan.copies, *plan.present)}
    hidden = values(plan.secrets, environ)
    step = resumed.checkpoint.step if resumed else 0
    return record.start(
        plan,
        marked=marked,
        config_text=plan.config.read_text("utf-8", "replace") if options.text is None else options.text,
        overrides=[redact(text, hidden) for text in options.overrides],
        arguments=[redact(text, hidden) for text in sys.argv],
        git=_git(),
        data={path: staged.sha256 for path, staged in manifest.read(plan.layout).items() if path in ours},
        resumed={"step": step, "tokens": record.tokens_until(before, step), **resumed.facts()} if resumed else None,
        in_force=resumed.in_force if resumed else {},
        before=before,
    )


def _until_it_ends(attempt: Attempt, running: closing.Recording, *, wait_for_room: bool) -> Results | None:
    """Train, and after a failure that another try can mend, resume from the newest complete checkpoint.

    Raises:
        TrainingError: it failed, and no other try can mend that.
        InterruptedRunError: a signal ended it.
        NotReadyError: the cluster has no room for another try.
    """
    plan, number = attempt.plan, 0
    while True:
        try:
            ended = attempt.run()
            saved = attempt.saved()
            running.step = ended.step or (saved.step if saved else 0)
            if ended.failure is None and ended.interrupted_by is None:
                return ended.results
            name = ended.interrupted_by or _before_another_try(
                attempt, running, ended, number, wait_for_room=wait_for_room
            )
        except KeyboardInterrupt:  # between two attempts, where no process passes signals on
            name = "a signal"
        if name is not None:
            running.cause = name
            raise _interrupted(plan, name, attempt.saved(), running.step)
        number += 1


def _before_another_try(
    attempt: Attempt, running: closing.Recording, ended: Ended, number: int, *, wait_for_room: bool
) -> str | None:
    """Make room, and wait; the signal that came meanwhile, if one did."""
    plan, show, failure = attempt.plan, attempt.show, ended.failure
    assert failure is not None
    running.cause = failure.cause
    disk_full = failure.rule == "disk-full"
    try:
        if number >= plan.retries or not _mendable(failure, ended.steps):
            if disk_full:
                attempt.clear(remove=True)
            raise _failed(plan, failure, attempt.saved(), tried=number)
        attempt.make_room(disk_full=disk_full)
        running.restarted(failure.cause, ended.step)
    except (ConfigError, StorageError) as error:
        show.step(f"warning: no room is made for another try: {error}")
        raise _failed(plan, failure, attempt.saved(), tried=number) from None
    wait = min(FIRST_WAIT * 2**number, LONGEST_WAIT)
    show.step(f"failed: {failure.cause}")
    show.step(f"tries again in {wait:.0f} s ({number + 1} of {plan.retries})")
    came = process.pause(wait)
    running.cause = None
    return came.name if came else _wait_for_room(plan, attempt.environ, show) if wait_for_room else None


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
        if (came := process.pause(ROOM_POLL)) is not None:
            return came.name
    return None


def _mendable(failure: Failure, steps: int) -> bool:
    return failure.retry == "yes" or (failure.retry == "after-progress" and steps > 0)


def _failed(plan: Plan, failure: Failure, saved: Checkpoint | None, *, tried: int) -> TrainingError:
    where = f"{failure.origin}; " if failure.origin else ""
    after = f" (after {tried} more {'try' if tried == 1 else 'tries'})" if tried else ""
    hint = " ".join(text for text in (failure.means, failure.hint) if text)
    hint = hint or "the log has the whole story, the cause first"
    return TrainingError(
        Problem(
            f"training failed{after}: {failure.cause}",
            f"{where}the whole log: {plan.layout.train_log}",
            f"{hint.rstrip('.')}; {_next(plan, saved)}",
        )
    )


def _interrupted(plan: Plan, name: str, saved: Checkpoint | None, step: int) -> InterruptedRunError:
    at = f" at step {step}" if step else ""
    lost = step - saved.step if saved else 0
    again = f"; {lost} {'step' if lost == 1 else 'steps'} since then will be made again" if lost > 0 else ""
    return InterruptedRunError(
        Problem(f"interrupted by {name}{at}", str(plan.layout.train_log), f"{_next(plan, saved)}{again}")
    )


def _next(plan: Plan, saved: Checkpoint | None) -> str:
    command = f"`{record.resume_command(plan.layout)}`"
    return f"{command} resumes from {saved.path.name}" if saved else f"no checkpoint was saved: {command} starts over"


def _running(layout: Layout, where: str) -> NotReadyError:
    hint = f"`cpt status {layout.run_dir}` shows it; wait for it, or end it"
    return NotReadyError(Problem(f"the run {layout.run} is running{where}", str(layout.run_json), hint))


def _git() -> dict[str, object] | None:
    """The working directory's commit, and whether anything differs from it; None for the latter where that would run
    programs that the repository names itself: its filters, to compare a file with what is committed.
    """
    commit = process.ask("git", "rev-parse", "HEAD")
    if not commit:
        return None
    settings = process.ask("git", "config", "--list", "--show-scope")
    if settings is None or _FILTER.search(settings):
        return {"commit": commit, "changed": None}
    status = process.ask(*_GIT, "status", "--porcelain", "--ignore-submodules=dirty", env=_NO_TRANSPORT)
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


def register(plan: Plan, show: Show) -> None:
    """The registry entries of what could be drawn only once the data was staged."""
    for done in stage.stage((), plan.entries, plan.layout.storage, report=lambda _: None):
        if done.outcome != "identical":
            show.staged(done)


def _require_a_block(plan: Plan, done: Sequence[stage.Staged]) -> None:
    """Even at a token a byte, the data must fill a block; else LLaMA-Factory finds that out in the workers."""
    sizes = [item.text_bytes + item.documents for item in done if item.text_bytes is not None and item.documents]
    if sizes and sum(sizes) < plan.block:
        what = f"{sum(sizes):,} bytes of text cannot fill one block of {plan.block:,} tokens"
        raise DataError(Problem(what, str(plan.config), "more text, or a smaller train.cutoff_len", "data-size"))
