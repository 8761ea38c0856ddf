"""What can be asked of this machine, the network and the cluster before anything is staged or held."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from shlex import quote

from cpt_launcher import disk
from cpt_launcher.errors import ConfigError, NotReadyError, Problem, StorageError
from cpt_launcher.launch import build_lock, cluster, nodes, tracking
from cpt_launcher.plan import footprint, sizing
from cpt_launcher.plan.plan import Plan
from cpt_launcher.runs import record
from cpt_launcher.runs.events import size
from cpt_launcher.staging import hub, model_files

INSTALL = "pip install 'cpt-launcher[train]' (in a clone: pip install -c pins.txt -e '.[train]')"
# LLaMA-Factory 0.9.3 refuses newer ones (extras/misc.py, check_dependencies; hparams/parser.py), ours the last rows.
LATEST = {
    "llamafactory": "0.9.3",
    "deepspeed": "0.16.9",
    "transformers": "4.52.4",
    "accelerate": "1.7.0",
    "datasets": "3.6.0",
    "tokenizers": "0.21.1",
}
# Without the package, LLaMA-Factory fails in the worker, or says so there and takes the slower way (attention.py).
KERNELS = (
    ("enable_liger_kernel", True, "liger_kernel", "pip install -c pins.txt -e '.[train,fast]', or leave it out"),
    ("flash_attn", "fa2", "flash_attn", "pip install flash-attn --no-build-isolation (it is compiled)"),
)
VISIBLE = "CUDA_VISIBLE_DEVICES"
_OF_STORAGE = ("space", "storage-on-workers")  # checks whose findings alone are an error of the storage
Check = Callable[[Plan, Mapping[str, str]], "list[Problem]"]


@dataclass(frozen=True)
class Ready:
    """What a run goes by: the cluster that it joins, None where it starts Ray itself, and what is only worth a word.
    `marked`: every worker can mark complete checkpoints and take secrets from memory. `environ`: the caller's, and
    where Ray is.
    """

    cluster: nodes.Cluster | None = None
    marked: bool = True
    warnings: tuple[str, ...] = ()
    environ: Mapping[str, str] = field(default_factory=dict)


def check(plan: Plan, environ: Mapping[str, str], *, skip: Sequence[str] = ()) -> Ready:
    """Run every check whose name is not in `skip`.

    Raises:
        ConfigError: `skip` names no check.
        NotReadyError: all that was found, at once.
        StorageError: nothing but the storage is at fault.
    """
    if unknown := set(skip) - set(names()):
        what = f"there is no preflight check '{', '.join(sorted(unknown))}'"
        raise ConfigError(Problem(what, "--skip-preflight", f"the checks are {', '.join(names())}"))
    given, environ = environ, cluster.settled(environ)
    found = [(name, item) for name, one in CHECKS.items() if name not in skip for item in one(plan, environ)]
    absent = _storage_absent(plan)
    if absent and not found:
        raise absent
    ready = Ready()
    if cluster.near(environ) and "cluster" not in skip and not found:
        ready, more = _on_cluster(plan, given, environ)
        found += [(name, item) for name, item in more if name not in skip]
    elif cluster.near(environ):
        lost = f", and its workers do not get {', '.join(plan.secrets)} from here" if plan.secrets else ""
        why = f"the Ray cluster was not asked: every rank copies its checkpoints, as Ray does{lost}"
        ready = Ready(marked=False, warnings=(why,))
    elif cluster.gone(given, environ):
        ready = Ready(
            warnings=("the Ray cluster that `ray start` began here no longer answers: the run starts a Ray of its own",)
        )
    if why := cluster.not_obeyed(given):
        ready = replace(ready, warnings=(*ready.warnings, why))
    if found:
        kind = StorageError if all(name in _OF_STORAGE for name, _ in found) else NotReadyError
        raise kind(*(absent.problems if absent else ()), *(_skippable(name, item) for name, item in found))
    warnings = (*ready.warnings, *sizing.warnings(plan, environ, _card(plan)))
    return replace(ready, warnings=warnings, environ=environ)


def _storage_absent(plan: Plan) -> StorageError | None:
    try:
        disk.require_storage(plan.layout.storage)
    except StorageError as error:
        return error
    return None


def room(plan: Plan, environ: Mapping[str, str]) -> list[Problem]:
    """Whether a cluster that lost a node can hold the workers again."""
    try:
        there = cluster.probe(plan, environ)
    except NotReadyError as error:
        return list(error.problems)
    return [problem for name, problem in nodes.problems(plan, there) if name == "resources"]


def check_tokenizing(plan: Plan) -> None:
    """What `cpt tokenize` needs.

    Raises:
        NotReadyError: LLaMA-Factory or the model is not there.
    """
    found = [] if importlib.util.find_spec("llamafactory") else [_not_installed(["llamafactory"])]
    if found := [*found, *model_present(plan, {})]:
        raise NotReadyError(*found)


def _not_installed(missing: Sequence[str]) -> Problem:
    return Problem(f"not installed: {', '.join(missing)}", sys.prefix, INSTALL)


def names() -> tuple[str, ...]:
    """The names that `--skip-preflight` takes."""
    return (*CHECKS, "cluster", *nodes.CHECKS)


def _skippable(name: str, problem: Problem) -> Problem:
    hint = "; ".join(text for text in (problem.hint, f"if this is wrong: --skip-preflight {name}") if text)
    return Problem(problem.what, problem.where, hint)


def _on_cluster(
    plan: Plan, given: Mapping[str, str], environ: Mapping[str, str]
) -> tuple[Ready, list[tuple[str, Problem]]]:
    there = cluster.probe(plan, environ)
    found, warnings = nodes.problems(plan, there), nodes.warnings(plan, there)
    absent = nodes.has_launcher(there)
    own_hook = "worker_process_setup_hook" in plan.train_yaml
    if absent and plan.secrets:
        what = (
            f"workers on {', '.join(absent)} cannot get {', '.join(plan.secrets)}: cpt-launcher is not installed there"
        )
        hint = "install it there, or set the secrets on the cluster and leave them out of the config"
        found.append(("cluster", Problem(what, there.address, hint)))
    if absent or own_hook:
        own = "the YAML has a worker_process_setup_hook of its own"
        why = own if own_hook else f"cpt-launcher is not installed on {', '.join(absent)}"
        warnings.append(f"every rank copies its checkpoints, as Ray does: {why}")
    if plan.secrets and (address := cluster.only_found(given, environ)):
        warnings.append(
            f"{', '.join(plan.secrets)} will be given to the Ray cluster at {address}, which was found here: "
            "RAY_ADDRESS names none (RAY_ADDRESS=local: the run starts a Ray of its own)"
        )
    return Ready(there, not absent and not own_hook, tuple(warnings)), found


def secrets_set(plan: Plan, environ: Mapping[str, str]) -> list[Problem]:
    """Every secret that the config names has a value in the environment."""
    hint = "export {0}=... in this shell (`read -rs {0}; export {0}` keeps it out of the history)"
    missing = [name for name in plan.secrets if not environ.get(name)]
    return [Problem(f"the secret {name} is not set", str(plan.config), hint.format(name)) for name in missing]


def stack_installed(plan: Plan, environ: Mapping[str, str]) -> list[Problem]:
    """LLaMA-Factory can be started, and is of a version that the rendered YAML is for."""
    if plan.device == "gpu":
        missing = [] if executable(plan.argv[0], environ) else [plan.argv[0]]
    else:
        missing = [name for name in ("llamafactory", "ray", "deepspeed") if importlib.util.find_spec(name) is None]
    if missing:
        return [_not_installed(missing)]
    have = record.versions()
    kernels = [
        Problem(f"train.{key} is set, and {module.replace('_', '-')} is not installed", sys.prefix, hint)
        for key, value, module, hint in KERNELS
        if plan.train.get(key) == value and importlib.util.find_spec(module) is None
    ]
    return kernels + [_too_late(name, have[name], last) for name, last in too_late(have)]


def _too_late(name: str, have: str, last: str) -> Problem:
    own = f"cpt writes its YAML for {last}"
    why = own if name == "llamafactory" else f"LLaMA-Factory {LATEST['llamafactory']} refuses any above {last}"
    return Problem(f"{name} {have} is installed, and {why}", sys.prefix, f"pip install '{name}=={last}'")


def too_late(have: Mapping[str, str]) -> list[tuple[str, str]]:
    """Packages newer than LLaMA-Factory takes, with the newest version that it does."""
    return [(name, last) for name, last in LATEST.items() if name in have and _numbers(have[name]) > _numbers(last)]


def model_present(plan: Plan, _: Mapping[str, str]) -> list[Problem]:
    """A model given as a folder is one; a hub's is in the cache, or this account may download it."""
    if plan.model.startswith("/"):
        if (Path(plan.model) / "config.json").is_file():
            return model_files.check(Path(plan.model))
        if Path(plan.model).exists():
            hint = "set model: to the folder that holds the model's config.json and its weights"
            return [Problem("the model is no folder with a config.json", plan.model, hint)]
        hint = "check model: in the config; the demo's model is made by `cpt demo`"
        return [Problem("the model's folder is not there", plan.model, hint)]
    try:
        hub.check_access(plan.model)
    except NotReadyError as error:
        if "/" in plan.model:
            return list(error.problems)
        hint = f"name a folder by its path: model: ./{plan.model}, or a model of the hub: model: owner/name"
        none = f"there is no folder {plan.model} here either"
        return [Problem(f"{found.what}; {none}", found.where, hint, found.rule) for found in error.problems]
    return []


def transfer_present(plan: Plan, environ: Mapping[str, str]) -> list[Problem]:
    """huggingface_hub refuses to download where it is asked for hf_transfer and has none (file_download.py)."""
    asked = {**environ, **plan.env}.get("HF_HUB_ENABLE_HF_TRANSFER", "").upper() in ("1", "ON", "YES", "TRUE")
    if plan.model.startswith("/") or not asked or importlib.util.find_spec("hf_transfer"):
        return []
    what = "HF_HUB_ENABLE_HF_TRANSFER is set, and hf_transfer is not installed"
    return [
        Problem(what, sys.prefix, "pip install hf_transfer, or remove the variable (env: in the config, or your shell)")
    ]


def cpus_enough(plan: Plan, environ: Mapping[str, str]) -> list[Problem]:
    """CPU workers take one core each; Ray would wait for ever for one that is not there."""
    have = os.cpu_count() or 1
    if plan.device == "gpu" or cluster.near(environ) or have >= plan.workers:
        return []
    what = f"{plan.workers} CPU workers need a core each, and this machine has {have}: Ray would wait for ever"
    return [Problem(what, "this machine", f"set resources: to {{cpus: {have}}}, or run on a larger machine")]


def gpus_enough(plan: Plan, environ: Mapping[str, str]) -> list[Problem]:
    """Where the run starts Ray itself, the GPUs are this machine's; Ray would wait for ever for more, or others."""
    if plan.device == "cpu" or cluster.near(environ):
        return []
    asked_by = {**environ, **plan.env}
    have_here, usable = gpus_here(), gpus_visible(asked_by)
    if usable < plan.workers:
        wanted = f"the run needs {_counted(plan.workers, 'GPU')}"
        what = f"{wanted}, and this machine has {_counted(have_here, 'NVIDIA GPU')} and no Ray cluster"
        hint = "run it where the GPUs are: on that machine, or with RAY_ADDRESS=HOST:PORT of a Ray cluster"
        if usable:
            hint += f"; or set resources: to {{gpus: {usable}}}"
        if usable < have_here:
            what = f"{wanted}, and {VISIBLE}={asked_by[VISIBLE]} leaves {usable} of this machine's {have_here}"
            hint = f"unset {VISIBLE} or name more GPUs in it" + (
                f"; or set resources: to {{gpus: {usable}}}" if usable else ""
            )
        return [Problem(f"{what}: Ray would wait for ever", "this machine", hint)]
    asked, have = _accelerator(plan), record.gpu_names()
    if asked and have and not any(asked.replace("-", " ").split()[0] in name.replace("-", " ") for name in have):
        what = f"the run asks for {asked}, and this machine has {have[0]}: Ray would wait for ever"
        return [Problem(what, "this machine", "set resources.accelerator to the card that is here, or remove it")]
    return []


def space_enough(plan: Plan, _: Mapping[str, str]) -> list[Problem]:
    """The checkpoints that the config will write fit on the storage."""
    need = footprint.on_storage(plan)
    folder = next((path for path in (plan.layout.run_dir, *plan.layout.run_dir.parents) if path.is_dir()), None)
    if not need or folder is None or need.total <= (free := shutil.disk_usage(folder).free):
        return []
    what = f"{_counted(need.count, 'checkpoint')} of {size(need.each)} and the model of {size(need.model)} need"
    what = f"{what} {size(need.total)} at once, and {size(free)} are free"
    return [Problem(what, str(plan.layout.storage), _room_hint(plan, need, free))]


def _room_hint(plan: Plan, need: footprint.Footprint, free: int) -> str:
    """Space to free, and settings that would make do with what there is."""
    hint = f"free {size(need.total - free)} there, or choose another storage"
    fits = [keep for keep in (2, 1) if keep + 1 < need.count and (keep + 1) * need.each + need.model <= free]
    if fits:
        return f"{hint}, or set keep: {fits[0]} (one more is there while the next is written)"
    if need.count > 1 and need.count == footprint.count_saves(plan.train):
        return f"{hint}, or save less often: a larger train.save_steps"
    return hint


def compiler_present(plan: Plan, environ: Mapping[str, str]) -> list[Problem]:
    """DeepSpeed compiles its CPU communication once (deepspeed/ops/op_builder/builder.py, `jit_load`)."""
    if plan.device == "gpu":
        return []
    compiler = environ.get("CXX", "c++")
    if shutil.which(compiler, path=environ.get("PATH")):
        return _not_locked({**environ, **plan.env})
    hint = "install one, for example: apt-get install g++"
    hint += "; or unset CXX, which names it" if "CXX" in environ else ""
    what = f"DeepSpeed on CPU needs a C++ compiler, and there is no '{compiler}'"
    return [Problem(what, "this machine", hint)]


def _not_locked(environ: Mapping[str, str]) -> list[Problem]:
    """Workers would wait for ever for a compilation that was ended half-way."""
    what = "a compilation of DeepSpeed was ended half-way, and workers would wait for its lock for ever"
    return [Problem(what, str(lock), f"rm {quote(str(lock))}") for lock in build_lock.left(environ)]


def tracker_reachable(plan: Plan, environ: Mapping[str, str]) -> list[Problem]:
    """MLflow is installed, and a server answers this account; in a worker that takes 247 s to find out."""
    if not plan.tracked:
        return []
    if importlib.util.find_spec("mlflow") is None:
        return [Problem("tracking asks for MLflow, which is not installed", sys.prefix, INSTALL)]
    problem = tracking.reach({**environ, **plan.env})
    return [problem] if problem else []


CHECKS: dict[str, Check] = {
    "secrets": secrets_set,
    "stack": stack_installed,
    "model": model_present,
    "hf_transfer": transfer_present,
    "gpus": gpus_enough,
    "cpus": cpus_enough,
    "compiler": compiler_present,
    "space": space_enough,
    "tracker": tracker_reachable,
}


def gpus_here() -> int:
    """NVIDIA devices of this machine."""
    return sum(path.name.removeprefix("nvidia").isdigit() for path in Path("/dev").glob("nvidia*"))


def gpus_visible(environ: Mapping[str, str]) -> int:
    """Those of this machine's that a run may use: Ray counts the names in the variable, if there are fewer
    (ray/_private/accelerators/nvidia_gpu.py, resource_spec.py), and CUDA takes none from a negative one on.
    """
    given = environ.get(VISIBLE)
    if given is None:
        return gpus_here()
    names = [] if given in ("", "NoDevFiles") else given.split(",")
    usable = next((at for at, name in enumerate(names) if name.strip().startswith("-")), len(names))
    return min(gpus_here(), usable)


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def executable(name: str, environ: Mapping[str, str]) -> str | None:
    """A command on PATH, else beside this Python: `.venv/bin/cpt` works without activating the venv."""
    beside = Path(sys.executable).parent
    found = shutil.which(name, path=environ.get("PATH")) or shutil.which(name, path=str(beside))
    return str(Path(found).absolute()) if found else None


def _card(plan: Plan) -> str:
    """The card that the workers will be on, as far as the labels or this machine say; empty where they do not."""
    if plan.device == "cpu":
        return ""
    if label := _accelerator(plan):
        return label
    shape = next((key.rpartition("x")[2] for key in _labels(plan) if "accelerator_shape" in key), "")
    return shape or next(iter(record.gpu_names()), "")


def _accelerator(plan: Plan) -> str | None:
    """The `accelerator_type:` label that every worker asks for."""
    return next((key.partition(":")[2] for key in _labels(plan) if key.startswith("accelerator_type:")), None)


def _labels(plan: Plan) -> list[str]:
    """The resources that every worker asks for."""
    wanted = plan.train.get("resources_per_worker")
    return [str(key) for key in wanted] if isinstance(wanted, dict) else []


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("+")[0].split(".") if part.isdigit())
