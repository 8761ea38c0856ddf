"""What can be asked of this machine before anything is staged or held."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from cpt_launcher.errors import NotReadyError, Problem
from cpt_launcher.plan import Plan

INSTALL = "pip install 'cpt-launcher[train]' (in a clone: pip install -c pins.txt -e '.[train]')"
Check = Callable[[Plan, Mapping[str, str]], "list[Problem]"]


def check(plan: Plan, environ: Mapping[str, str]) -> None:
    """Run every check.

    Raises:
        NotReadyError: all that was found, at once.
    """
    problems = [problem for one in CHECKS for problem in one(plan, environ)]
    if problems:
        raise NotReadyError(*problems)


def secrets_set(plan: Plan, environ: Mapping[str, str]) -> list[Problem]:
    """Every secret that the config names has a value in the environment."""
    hint = "export {0}=... in this shell (`read -rs {0}; export {0}` keeps it out of the history)"
    missing = [name for name in plan.secrets if not environ.get(name)]
    return [Problem(f"the secret {name} is not set", str(plan.config), hint.format(name)) for name in missing]


def stack_installed(plan: Plan, environ: Mapping[str, str]) -> list[Problem]:
    """LLaMA-Factory can be started: its command for GPU workers, its package for CPU ones."""
    if plan.device == "gpu":
        missing = [] if executable(plan.argv[0], environ) else [plan.argv[0]]
    else:
        missing = [name for name in ("llamafactory", "ray", "deepspeed") if importlib.util.find_spec(name) is None]
    return [Problem(f"not installed: {', '.join(missing)}", sys.prefix, INSTALL)] if missing else []


def model_present(plan: Plan, _: Mapping[str, str]) -> list[Problem]:
    """A model given as a folder is one. A hub id is not asked for here."""
    if not plan.model.startswith("/") or (Path(plan.model) / "config.json").is_file():
        return []
    hint = "check the path; the demo's model is made by `cpt demo`"
    return [Problem("the model is no folder with a config.json", plan.model, hint)]


def cpus_enough(plan: Plan, environ: Mapping[str, str]) -> list[Problem]:
    """CPU workers take one core each; Ray would wait for ever for one that is not there."""
    have = os.cpu_count() or 1
    if plan.device == "gpu" or cluster_near(environ) or have >= plan.workers:
        return []
    return [Problem(f"{plan.workers} CPU workers on {have} cores", "this machine", f"resources.cpus={have}")]


def gpus_enough(plan: Plan, environ: Mapping[str, str]) -> list[Problem]:
    """Where the run starts Ray itself, the GPUs are this machine's; Ray would wait for ever for more."""
    if plan.device == "cpu" or cluster_near(environ) or gpus_here() >= plan.workers:
        return []
    what = f"{plan.workers} GPU workers, and this machine has {gpus_here()} NVIDIA GPUs and no Ray cluster"
    return [Problem(what, "this machine", "set resources.gpus, or run where the GPUs are")]


def cluster_near(environ: Mapping[str, str]) -> bool:
    """Whether Ray would join a running cluster (ray/_private/worker.py: RAY_ADDRESS, then ray_current_cluster)."""
    folder = Path(environ.get("RAY_TMPDIR", "/tmp")) / "ray"
    return bool(environ.get("RAY_ADDRESS")) or (folder / "ray_current_cluster").exists()


def gpus_here() -> int:
    """NVIDIA devices of this machine."""
    return sum(path.name.removeprefix("nvidia").isdigit() for path in Path("/dev").glob("nvidia*"))


def compiler_present(plan: Plan, environ: Mapping[str, str]) -> list[Problem]:
    """DeepSpeed compiles its CPU communication once (deepspeed/ops/op_builder/builder.py, `jit_load`)."""
    compiler = environ.get("CXX", "c++")
    if plan.device == "gpu" or shutil.which(compiler, path=environ.get("PATH")):
        return []
    hint = "install one, for example: apt-get install g++"
    return [Problem("DeepSpeed on CPU needs a C++ compiler, and there is none", "this machine", hint)]


CHECKS: tuple[Check, ...] = (
    secrets_set,
    stack_installed,
    model_present,
    gpus_enough,
    cpus_enough,
    compiler_present,
)


def executable(name: str, environ: Mapping[str, str]) -> str | None:
    """A command on PATH, else beside this Python: `.venv/bin/cpt` works without activating the venv."""
    beside = Path(sys.executable).parent
    return shutil.which(name, path=environ.get("PATH")) or shutil.which(name, path=str(beside))
