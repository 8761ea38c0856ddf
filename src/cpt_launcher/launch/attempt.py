"""One try at training: room for it, the process, and what it came to."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from cpt_launcher import disk, process
from cpt_launcher.errors import StorageError
from cpt_launcher.explain import Failure, explain
from cpt_launcher.launch import build_lock, cluster, hook, preflight, resumption
from cpt_launcher.launch.watch import Watch
from cpt_launcher.plan.plan import UNSET, Plan
from cpt_launcher.runs import checkpoints, history, results
from cpt_launcher.runs.checkpoints import Checkpoint
from cpt_launcher.runs.events import Event, Progress
from cpt_launcher.runs.results import Results
from cpt_launcher.secrets import values
from cpt_launcher.staging import stage


@dataclass(frozen=True)
class Show:
    """How a run tells what it does; all it is given is redacted."""

    step: Callable[[str], None]
    staged: Callable[[stage.Staged | stage.StagedFolder], None]
    output: Callable[[str], None]
    event: Callable[[Event, Progress], None]


@dataclass(frozen=True)
class Ended:
    """How a try ended: finished, failed, or by a signal. `steps` is how many it made, `step` the last one's number."""

    step: int
    steps: int
    interrupted_by: str | None = None
    failure: Failure | None = None
    results: Results | None = None


@dataclass(frozen=True)
class Attempt:
    """A training that can be tried more than once. `marked`: its workers mark complete checkpoints. `settings`: more
    variables for the workers.
    """

    plan: Plan
    environ: Mapping[str, str]
    show: Show
    marked: bool
    secrets_key: str | None
    settings: Mapping[str, str] = field(default_factory=dict)

    def make_room(self, *, disk_full: bool = False) -> None:
        """LLaMA-Factory resumes from the newest checkpoint, complete or not, and refuses an output folder that holds
        none (hparams/parser.py): half-written ones are set aside, or removed where the disk is full.

        Raises:
            ConfigError: the newest complete checkpoint is for another number of workers.
        """
        output = self.plan.output
        if output is None or not output.is_dir() or not any(output.iterdir()):
            return
        newest = self.clear(remove=disk_full)
        if newest:
            self.show.step(f"resumes from {newest.path}, step {newest.step}")
        elif output == self.plan.layout.output:
            self.show.step(f"an earlier attempt saved no checkpoint; its output is now {disk.set_aside(output)}")

    def clear(self, *, remove: bool) -> Checkpoint | None:
        """Set half-written checkpoints aside, or remove them; the newest complete one.

        Raises:
            ConfigError: that one is for another number of workers.
        """
        if self.plan.output is None:
            return None
        strict = resumption.strict(self.plan)
        newest, broken = checkpoints.choose(self.plan.output, self.plan.workers, marked=strict)
        for line in checkpoints.clear(broken, remove=remove):
            self.show.step(line)
        return newest

    def saved(self) -> Checkpoint | None:
        """The checkpoint to resume from."""
        if self.plan.output is None:
            return None
        found = checkpoints.find(self.plan.output, marked=resumption.strict(self.plan))
        return next((item for item in reversed(found) if item.complete), None)

    def run(self) -> Ended:
        """Start the training process and follow it to its end."""
        plan = self.plan
        hidden = values(plan.secrets, self.environ)
        watch = Watch(plan, hidden, self.show.output, self.show.event)
        program = preflight.executable(plan.argv[0], self.environ) or plan.argv[0]
        env = {key: value for key, value in self.environ.items() if key not in UNSET} | dict(plan.env)
        env |= {name: value for name, value in cluster.alone(self.environ).items() if name not in plan.env}
        began, saved = time.time(), self.saved()
        env |= self.settings
        if self.marked:
            counts = plan.layout.token_counts / f"{began:.0f}.jsonl"
            disk.touch(counts)
            env |= hook.job_config(
                self.environ,
                keep=plan.keep,
                secrets_key=self.secrets_key,
                tokens=str(counts),
                settings=self.settings,
            )
        self.show.step(f"starts {' '.join(plan.argv)}")
        with watch.files():
            watch.emit({"event": "phase", "time": time.time(), "phase": watch.progress.phase})

            def stopping() -> None:
                self.show.step("stopping the workers; Ctrl-C again does not wait")
                watch.stopping()

            argv, locks = (program, *plan.argv[1:]), build_lock.there(env)
            exited = process.run(argv, env, watch.line, watch.tick, folder=plan.folder, stopping=stopping)
            self._unlock(build_lock.there(env) - locks)
            watch.finish()
            ended = self._judge(watch, exited, began)
            self._emit_last_evaluation(watch, ended, began)
            state = "interrupted" if ended.interrupted_by else "failed" if ended.failure else "finished"
            watch.emit({"event": "end", "time": time.time(), "state": state, "step": ended.step})
        if watch.unwritten:
            self.show.step(f"warning: {watch.unwritten:,} lines could not be written to {plan.layout.train_log}")
        return replace(ended, steps=max(0, ended.step - (saved.step if saved else 0)))

    def _emit_last_evaluation(self, watch: Watch, ended: Ended, began: float) -> None:
        """LLaMA-Factory evaluates once more after the training, where its log is closed already: whatever reads the
        events learns of it here.
        """
        if self.plan.output is None or ended.results is None:
            return
        with contextlib.suppress(OSError):  # a storage that cannot be read: the training ended well all the same
            loss, before = results.evaluated_since(self.plan.output, began), history.events(self.plan.layout)
            known = {event["step"] for event in before if event["event"] == "eval"}
            if loss is not None and ended.step not in known:
                event: Event = {"event": "eval", "time": time.time(), "step": ended.step, "loss": loss}
                watch.emit({**event, "phase": watch.progress.phase})

    def _unlock(self, locks: frozenset[Path]) -> None:
        """The processes are gone: what they had begun to compile is nobody's, and would be waited for for ever."""
        for lock in sorted(locks):
            if not build_lock.held(lock):
                with contextlib.suppress(StorageError):
                    disk.remove_tree(lock)
                    self.show.step(f"removed {lock}: its compilation was ended half-way")

    def _judge(self, watch: Watch, exited: process.Exit, began: float) -> Ended:
        step, output = watch.progress.step, self.plan.output
        if exited.interrupted_by is not None:
            return Ended(step, 0, interrupted_by=exited.interrupted_by.name)
        if exited.code != 0:
            found = explain(list(watch.tail), watch.ranks)
            return Ended(step, 0, failure=found or _by_exit_code(exited.code))
        if output is not None and not results.trained_since(output, began):
            what = "the training process ended well, but trained nothing"
            return Ended(step, 0, failure=Failure(what, "", "", "is do_train: true set?", "no", "trained-nothing"))
        return Ended(step, 0, results=results.read(output) if output else None)


def _by_exit_code(code: int) -> Failure:
    """A process that died without a word: by a signal where the code is negative (subprocess.Popen.returncode)."""
    if code >= 0:
        return Failure(f"the training process ended with {code}", "", "", "", "after-progress", "unknown")
    means = "Something outside ended it; SIGKILL is often the kernel, for want of memory (`dmesg` tells)."
    return Failure(f"the training process was ended by {process.signal_name(-code)}", "", means, "", "yes", "killed")
