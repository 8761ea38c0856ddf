"""LLaMA-Factory's own argument parser, asked on a CPU (needs the training stack)."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import re
from collections.abc import Callable, Mapping

from cpt_launcher.errors import NotReadyError, Problem
from cpt_launcher.validate.report import Finding, of

# What needs a GPU or a process group at parse time, and is not for a laptop to decide.
_LEFT_OUT = ("deepspeed", "tf32")
_WORD = re.compile(r"[a-z][a-z0-9_]{2,}")


def check(arguments: Mapping[str, object], where: Callable[[str], str]) -> list[Finding]:
    """What `get_train_args` (llamafactory/hparams/parser.py) says of a training YAML's arguments.

    Raises:
        NotReadyError: LLaMA-Factory is not installed here.
    """
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        os.environ.pop(name, None)
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        said = _ask({key: value for key, value in arguments.items() if key not in _LEFT_OUT})
    if said is None:
        return []
    about = next((word for word in _WORD.findall(said) if word in arguments), "")
    return [of(Problem(said, where(about), "", "strict"))]


def _ask(arguments: dict[str, object]) -> str | None:
    try:
        import transformers.training_args as training_args
        from llamafactory.hparams import parser
    except ImportError as error:
        hint = "pip install 'cpt-launcher[train]', or leave --strict out"
        raise NotReadyError(Problem(f"--strict needs LLaMA-Factory: {error}", "this environment", hint)) from None
    for module in (training_args, parser):
        module.is_torch_bf16_gpu_available = lambda *_, **__: True  # the GPUs are elsewhere
    logging.disable(logging.WARNING)
    try:
        parser.get_train_args(arguments)
    except (ValueError, TypeError, ImportError, OSError, AttributeError, KeyError) as error:
        return " ".join(str(error).split())
    finally:
        logging.disable(logging.NOTSET)
    return None
