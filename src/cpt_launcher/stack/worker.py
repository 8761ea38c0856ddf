"""What runs inside Ray's workers: each checkpoint written once, complete or absent, and secrets taken from memory.

`setup` is a Ray `worker_process_setup_hook`. It comes to the workers through the job's runtime environment, outside the
training YAML; without it (or without this package on a worker) a run works Ray's own way.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cpt_launcher import safe_open
from cpt_launcher.stack import tokens
from cpt_launcher.stack.after_import import AfterImport

HOOK = "cpt_launcher.stack.worker.setup"
KEEP, NEXT_HOOK, SECRETS_KEY, TOKENS = "CPT_KEEP", "CPT_NEXT_HOOK", "CPT_SECRETS_KEY", "CPT_TOKENS"
RUN_NAME = "CPT_RUN_NAME"
RESUMED = "resumed."  # begins the MLflow tags that have a resumed run's changed parameters
MARKER = "cpt-complete.json"
RENDEZVOUS = "torch.distributed.rendezvous"
INTEGRATIONS = "transformers.integrations.integration_utils"
CALLBACKS = "ray.train.huggingface.transformers._transformers_utils"
TRAINER = "llamafactory.train.pt.trainer"


def setup() -> None:
    """Prepare this worker, before any of the run's code. Imports nothing heavy: it runs in every worker of the job."""
    if key := os.environ.get(SECRETS_KEY):
        from cpt_launcher.stack.probe import receive

        os.environ.update(receive(key))
    AfterImport.install(CALLBACKS, _replace_on_save)
    AfterImport.install(INTEGRATIONS, _tolerate)
    AfterImport.install(RENDEZVOUS, _stay_home)
    AfterImport.install(TRAINER, _evaluate_once)
    tokens.install(os.environ.get(TOKENS))
    if hook := os.environ.get(NEXT_HOOK):
        module, _, name = hook.rpartition(".")
        getattr(__import__(module, fromlist=[name]), name)()


def on_save(_callback: object, args: Any, state: Any, _control: object, **_: object) -> None:
    """In place of `RayTrainReportCallback.on_save` of Ray 2.48, which has every rank copy the checkpoint folder to a
    temporary one and upload that: (2N+1)S bytes written for N ranks and a checkpoint of S bytes.

    Here the shards stay where DeepSpeed wrote them, in the output folder, and Ray's place becomes a link to it. When
    every rank has written, and the disk has it, rank 0 writes the marker.
    """
    import ray.train

    context = ray.train.get_context()
    checkpoint = Path(args.output_dir).absolute() / f"checkpoint-{state.global_step}"
    _barrier()
    if context.get_local_rank() == 0:
        _to_disk(checkpoint)
    _barrier()
    if context.get_world_rank() == 0 and checkpoint.is_dir():
        loss = next((row["loss"] for row in reversed(state.log_history) if "loss" in row), None)
        mark(checkpoint, {"step": state.global_step, "loss": loss, "workers": context.get_world_size()})
        prune(checkpoint.parent, int(os.environ.get(KEEP, "0")))
        storage = context.get_storage()
        if storage is not None and "://" not in storage.trial_fs_path:
            link(checkpoint, Path(storage.trial_fs_path))
    metrics: dict[str, object] = {}
    for row in state.log_history:
        metrics.update(row)
    ray.train.report(metrics=metrics, checkpoint=None)


def mark(checkpoint: Path, facts: dict[str, object]) -> None:
    """Write the marker, by rename: the files of the checkpoint with their sizes in bytes, and `facts` beside them."""
    files = {str(path.relative_to(checkpoint)): path.stat().st_size for path in sorted(_files(checkpoint))}
    files.pop(MARKER, None)
    value = {**facts, "deepspeed_stage": _stage(checkpoint), "bytes": sum(files.values()), "files": files}
    part = checkpoint / f".{MARKER}"
    with safe_open.to_write(part, "r+b", -1) as file:
        file.truncate(0)
        file.write(json.dumps(value, indent=1).encode())
        file.flush()
        os.fsync(file.fileno())
    part.replace(checkpoint / MARKER)


def link(checkpoint: Path, trial: Path) -> None:
    """`checkpoint_00000N/checkpoint` in Ray's trial folder, a relative link to the checkpoint; links to what is gone
    are removed.
    """
    numbered = sorted(trial.glob("checkpoint_??????"))
    number = int(numbered[-1].name.partition("_")[2]) + 1 if numbered else 0
    place = trial / f"checkpoint_{number:06d}"
    place.mkdir(parents=True)
    (place / "checkpoint").symlink_to(os.path.relpath(checkpoint, place))
    for folder in numbered[-100:]:
        old = folder / "checkpoint"
        if old.is_symlink() and not old.exists():
            shutil.rmtree(folder)


def prune(output: Path, keep: int) -> None:
    """Remove the oldest complete checkpoints beyond the newest `keep`; 0 keeps all. A link leads to what may be
    another run's, and is left alone.
    """
    if keep > 0:
        own = [checkpoint for checkpoint in complete(output) if not checkpoint.is_symlink()]
        for checkpoint in own[:-keep]:
            (checkpoint / MARKER).unlink()  # first, so that a removal cut short leaves no complete one
            shutil.rmtree(checkpoint, ignore_errors=True)


def complete(output: Path) -> list[Path]:
    """The checkpoint folders that carry the marker, oldest first."""
    found = [path.parent for path in output.glob(f"checkpoint-*/{MARKER}")]
    return sorted((path for path in found if path.name[11:].isdecimal()), key=lambda path: int(path.name[11:]))


def _stage(checkpoint: Path) -> int:
    """The ZeRO stage by DeepSpeed's file names (runtime/engine.py, `_get_zero_ckpt_name`); 0 without DeepSpeed."""
    if any(checkpoint.glob("global_step*/zero_pp_rank_*_model_states.pt")):
        return 3
    return 2 if any(checkpoint.glob("global_step*/*zero_pp_rank_*_optim_states.pt")) else 0


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def _to_disk(checkpoint: Path) -> None:
    """Have the disk take what this node wrote, before the marker says that it is there."""
    for path in _files(checkpoint):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _barrier() -> None:
    import torch.distributed

    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.barrier()


def _replace_on_save(module: Any) -> None:
    module.RayTrainReportCallback.on_save = on_save


def _stay_home(module: Any) -> None:
    """Where the ranks meet on loopback, have their store listen there alone: torch's own does on every interface."""
    store = module.TCPStore

    def on_loopback(*arguments: Any, **named: Any) -> Any:
        if named.get("is_master") and named.get("host_name") in ("127.0.0.1", "localhost") and named.get("port"):
            listening = socket.create_server(("127.0.0.1", named["port"]), backlog=1024)
            named["master_listen_fd"] = listening.detach()
        return store(*arguments, **named)

    module.TCPStore = on_loopback


def _evaluate_once(module: Any) -> None:
    """LLaMA-Factory 0.9.3 evaluates after the training (train/pt/workflow.py), whether or not the last step was. No
    argument says otherwise: `eval_strategy` sets `do_eval` (transformers, training_args.py). The same weights on the
    same tokens have the same loss, so the figures of that step are given again.
    """
    inner = module.CustomTrainer.evaluate

    def evaluate(self: Any, *arguments: Any, **named: Any) -> Any:
        step, known = self.state.global_step, getattr(self, "_cpt_evaluated", None)
        again = not self.is_in_train and not arguments and named == {"metric_key_prefix": "eval"}
        if known and again and known[0] == step and not self.args.load_best_model_at_end:
            return dict(known[1])
        figures = inner(self, *arguments, **named)
        if "eval_dataset" not in named and not arguments:
            self._cpt_evaluated = (step, figures)
        return figures

    module.CustomTrainer.evaluate = evaluate


def _tolerate(module: Any) -> None:
    """What the MLflow callback of transformers 4.52 needs. It raises where its server is gone, and would end the
    training; it renames the run after the output folder; it sends the parameters of a resumed run anew; and it ends
    the run before LLaMA-Factory's last evaluation, whose figures MLflow would then put into a new one. The launcher
    ends it.
    """
    kind = module.MLflowCallback
    setup, log = kind.setup, kind.on_log

    def named_setup(self: Any, args: Any, state: Any, model: Any) -> None:
        args.run_name = os.environ.get(RUN_NAME) or args.run_name
        self._ml_flow = _Resumed(self._ml_flow)
        setup(self, args, state, model)

    def flushed_log(self: Any, *arguments: Any, **named: Any) -> None:
        log(self, *arguments, **named)
        if getattr(self, "_cpt_trained", False):
            self._ml_flow.flush_async_logging()

    def on_train_end(self: Any, _args: Any, state: Any, _control: Any, **_: Any) -> None:
        self._cpt_trained = True
        if self._initialized and state.is_world_process_zero:
            self._ml_flow.flush_async_logging()

    kind.setup, kind.on_log = _surviving(named_setup), _surviving(flushed_log)
    if os.environ.get("MLFLOW_RUN_ID"):
        kind.on_train_end = _surviving(on_train_end)
    else:
        kind.on_train_end = _surviving(kind.on_train_end)


class _Resumed:
    """The mlflow module, for a run that may have parameters already. MLflow lets nobody change one, and refuses all
    that are sent with it: a resumed run's new values become tags instead.
    """

    def __init__(self, mlflow: Any) -> None:
        self._mlflow = mlflow

    def __getattr__(self, name: str) -> Any:
        return getattr(self._mlflow, name)

    def log_params(self, params: dict[str, object], **named: Any) -> None:
        """Log those that the run has not; tag those whose newest value is another one, and say so."""
        known = self._mlflow.get_run(self._mlflow.active_run().info.run_id).data
        self._mlflow.log_params({name: value for name, value in params.items() if name not in known.params}, **named)
        newest = {name: known.tags.get(f"{RESUMED}{name}", value) for name, value in known.params.items()}
        stable = [name for name in params if name in newest and name != "logging_dir"]  # that has the time in its name
        changed = {name: params[name] for name in stable if str(params[name]) != newest[name]}
        if changed:
            self._mlflow.set_tags({f"{RESUMED}{name}": value for name, value in changed.items()}, **named)
            names = ", ".join(changed)
            sys.stderr.write(f"cpt: MLflow keeps a run's first parameters; tags {RESUMED}* have the new {names}\n")


def _surviving(inner: Callable[..., None]) -> Callable[..., None]:
    def call(self: Any, *arguments: Any, **named: Any) -> None:
        if getattr(self, "_cpt_lost", False):
            return
        try:
            inner(self, *arguments, **named)
        except Exception as error:  # noqa: BLE001 - whatever it is, the training continues
            self._cpt_lost = self._initialized = True
            self._auto_end_run = False
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            sys.stderr.write(f"cpt: MLflow is lost, and the training continues without it ({reason})\n")

    return call
