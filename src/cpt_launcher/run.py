"""The main job: preflight, stage, render, launch, record."""

from __future__ import annotations

import collections
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone

from cpt_launcher import disk, launch, preflight, record, results, stage, tokenized
from cpt_launcher.config import PlainConfig, RunConfig
from cpt_launcher.errors import ConfigError, DataError, InterruptedRunError, NotReadyError, Problem, TrainingError
from cpt_launcher.layout import Layout
from cpt_launcher.plan import UNSET, Plan, plan_run
from cpt_launcher.results import Results
from cpt_launcher.secrets import redact, values

TAIL_LINES = 2000


@dataclass(frozen=True)
class Show:
    """How a run tells what it does: steps of its own, and lines of the training process, already redacted."""

    step: Callable[[str], None]
    staged: Callable[[stage.Staged], None]
    output: Callable[[str], None]


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
    state = record.state_of(layout)
    if state == "finished":
        hint = "run it again under a new folder with --fresh, or give it another name: name=..."
        raise ConfigError(Problem(f"the run {config.name} has finished", str(layout.run_dir), hint))
    if state == "running":
        hint = "wait for it, or end it; if its machine is gone, move its run.json aside"
        raise NotReadyError(Problem(f"the run {config.name} is going on", str(layout.run_json), hint))
    return config.name


def run(
    config: RunConfig | PlainConfig, environ: Mapping[str, str], show: Show, *, fresh: bool = False
) -> tuple[Plan, Results | None]:
    """Carry a run out from start to end.

    Raises:
        CptError: see `errors`; the training process's own failure is a TrainingError.
    """
    name = choose_run(config, fresh=fresh)
    plan = plan_run(config, environ, name)
    preflight.check(plan, environ)
    if plan.secrets and preflight.cluster_near(environ):
        names = ", ".join(plan.secrets)
        show.step(f"warning: workers of the Ray cluster that is running do not inherit {names}; set it on the cluster")
    _stage(plan, show)
    plan = plan_run(config, environ, name)  # which tokens belong to the data is known once it is staged
    outcome = disk.write_text(plan.layout.train_yaml, plan.train_yaml)
    show.step(f"{outcome:9} {plan.layout.train_yaml}")
    _make_room(plan, show)
    known = record.start(plan)
    began = time.time()
    exited, tail = _launch(plan, environ, show)
    return plan, _conclude(plan, known, exited, tail, began)


def tokenize(config: RunConfig, environ: Mapping[str, str], show: Show) -> None:
    """Stage what is missing and tokenise it, unless it is there.

    Raises:
        CptError: see `errors`.
    """
    _stage(plan_run(config, environ), show)
    plan = plan_run(config, environ)
    if plan.tokens is None:
        what = "the data is not on the storage as the manifest says"
        raise DataError(Problem(what, str(plan.layout.manifest), "cpt stage-data, then again"))
    target = plan.layout.tokenized(plan.tokens)
    if plan.layout.tokenized_marker(plan.tokens).is_file():
        show.step(f"identical {target}")
        return
    env = {key: value for key, value in environ.items() if key not in (*UNSET, "USE_RAY")} | {"DS_ACCELERATOR": "cpu"}
    hidden = values(plan.secrets, environ)

    def run_process(argv: Sequence[str]) -> tuple[int, list[str]]:
        lines: collections.deque[str] = collections.deque(maxlen=TAIL_LINES)
        exited = launch.run(argv, env, lambda line: lines.append(redact(line, hidden)))
        if exited.interrupted_by is not None:
            raise InterruptedRunError(Problem(f"interrupted by {exited.interrupted_by.name}", str(target)))
        return exited.code, list(lines)

    show.step(f"tokenises {', '.join(config.datasets)} for {config.model}")
    made = tokenized.make(plan.layout, plan.tokens, plan.train_yaml, sys.executable, run_process)
    end = made["end_of_text"]
    show.step(f"created   {target} ({made['blocks']:,} blocks, {made['tokens']:,} tokens, documents end in {end})")


def _stage(plan: Plan, show: Show) -> None:
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


def _make_room(plan: Plan, show: Show) -> None:
    """LLaMA-Factory resumes from a checkpoint, and refuses an output folder that holds none (hparams/parser.py)."""
    output = plan.output
    if output is None or not output.is_dir() or not any(output.iterdir()):
        return
    saved = list(results.checkpoints(output))
    while saved and not results.is_complete(saved[-1], plan.workers):
        show.step(f"{saved[-1].name} was not written to its end; it is now {disk.set_aside(saved.pop())}")
    if saved:
        show.step(f"resumes from {saved[-1]}")
    elif plan.output == plan.layout.output:
        show.step(f"an earlier attempt saved no checkpoint; its output is now {disk.set_aside(output)}")


def _launch(plan: Plan, environ: Mapping[str, str], show: Show) -> tuple[launch.Exit, list[str]]:
    hidden = values(plan.secrets, environ)
    tail: collections.deque[str] = collections.deque(maxlen=TAIL_LINES)
    program = preflight.executable(plan.argv[0], environ) or plan.argv[0]
    env = {key: value for key, value in environ.items() if key not in UNSET} | dict(plan.env)
    show.step(f"starts {' '.join(plan.argv)}")
    with disk.append_to(plan.layout.train_log) as log:
        log.write(f"cpt: started {datetime.now(timezone.utc):%Y-%m-%d %H:%M:%S} UTC\n")

        def sink(line: str) -> None:
            clean = redact(line, hidden)
            log.write(clean + "\n")
            tail.append(clean)
            show.output(clean)

        exited = launch.run((program, *plan.argv[1:]), env, sink)
    return exited, list(tail)


def _conclude(plan: Plan, known: record.Record, exited: launch.Exit, tail: list[str], began: float) -> Results | None:
    layout, log = plan.layout, str(plan.layout.train_log)
    if exited.interrupted_by is not None:
        record.end(layout, known, "interrupted", InterruptedRunError.exit_code, exited.interrupted_by.name)
        saved = plan.output is not None and results.checkpoints(plan.output)
        hint = "the same command goes on from the newest checkpoint" if saved else "the same command starts it over"
        raise InterruptedRunError(Problem(f"interrupted by {exited.interrupted_by.name}", log, hint))
    if exited.code != 0:
        cause = results.cause(tail) or f"the training process ended with {exited.code}"
        record.end(layout, known, "failed", TrainingError.exit_code, cause)
        raise TrainingError(Problem(f"training failed: {cause}", log, "the log has the whole story, the cause first"))
    if plan.output is not None and not results.trained_since(plan.output, began):
        what = "the training process ended well, but trained nothing"
        record.end(layout, known, "failed", TrainingError.exit_code, what)
        raise TrainingError(Problem(what, log, "is do_train: true set?"))
    record.end(layout, known, "finished", 0)
    return results.read(plan.output) if plan.output else None
