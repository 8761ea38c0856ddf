"""How much a run will write to the storage."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from cpt_launcher.config import arguments
from cpt_launcher.plan.plan import Plan

# Bytes a parameter takes in a checkpoint: weights in 16 bits, and the optimizer's master copy and two moments in 32
# (https://arxiv.org/abs/1910.02054, section 3.1); without mixed precision, the weights in 32. Measured: 14 and 16.
MIXED, FULL = 14, 16
MAX_HEADER = 100_000_000  # bytes, as in safetensors itself
_BITS = {"F64": 64, "F32": 32, "F16": 16, "BF16": 16, "F8_E4M3": 8, "F8_E5M2": 8, "I8": 8, "U8": 8}


@dataclass(frozen=True)
class Footprint:
    """Bytes on the storage: `count` checkpoints of `each`, and the final model."""

    count: int
    each: int
    model: int

    @property
    def total(self) -> int:
        return self.count * self.each + self.model


def on_storage(plan: Plan) -> Footprint | None:
    """What the checkpoints take that are there at once; None where the model or the number of saves is not known."""
    parameters = count_parameters(Path(plan.model)) if plan.model.startswith("/") else None
    count = kept(plan.train, plan.keep)
    if not parameters or count is None:
        return None
    return Footprint(count, *bytes_of(parameters, parameters, plan.train))


def bytes_of(loaded: int, trained: int, train: Mapping[str, object]) -> tuple[int, int]:
    """Bytes of a checkpoint and of the final model. What is loaded and not trained has no optimizer state."""
    weight, both = (2, MIXED) if train.get("bf16") or train.get("fp16") else (4, FULL)
    states = 0 if train.get("save_only_model") else (both - weight) * trained
    return weight * loaded + states, weight * loaded


def kept(train: Mapping[str, object], keep: int) -> int | None:
    """How many checkpoints are there at once; None where the number of saves is not known."""
    saves = count_saves(train)
    limits = [most + 1 for most in (keep, train.get("save_total_limit")) if isinstance(most, int) and most > 0]
    return None if saves is None else min([saves, *limits])


def count_parameters(model: Path) -> int | None:
    """Parameters of a model folder, from the headers of its safetensors files
    (https://huggingface.co/docs/safetensors, Format); None where there are none.
    """
    counts = [_parameters(path) for path in sorted(model.glob("*.safetensors"))]
    known = [count for count in counts if count is not None]
    return sum(known) or None if len(known) == len(counts) else None


def _parameters(path: Path) -> int | None:
    """Parameters of one safetensors file; None where its header is damaged or says what cannot be."""
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            size = os.fstat(file.fileno()).st_size - 8 - length
            if length > MAX_HEADER or size < 0:
                return None
            header = json.loads(file.read(length))
        tensors = [tensor for name, tensor in header.items() if name != "__metadata__"]
        spans = [(*tensor["data_offsets"], _BITS.get(tensor["dtype"], 16)) for tensor in tensors]
        if not all(0 <= begin <= end <= size for begin, end, _ in spans):
            return None
        return int(sum((end - begin) * 8 // bits for begin, end, bits in spans))
    except (OSError, ValueError, struct.error, RecursionError, AttributeError, TypeError, KeyError):
        return None


def count_saves(train: Mapping[str, object]) -> int | None:
    """How often a run of `max_steps` saves: every save_steps, and at the end (transformers, DefaultFlowCallback); None
    where it is not known.
    """
    if train.get("save_strategy") == "no":
        return 0
    every = interval(train, "save_steps")
    steps = train.get("max_steps")
    return -int(-int(str(steps)) // every) if every else None


def interval(train: Mapping[str, object], name: str) -> float | None:
    """Steps between two saves or evaluations of a run of `max_steps`; a share of the steps where it is below 1."""
    steps, every = train.get("max_steps"), train.get(name, arguments.load().arguments[name].default)
    if not isinstance(steps, int) or not isinstance(every, int | float) or steps < 1 or every <= 0:
        return None
    return every if every >= 1 else max(1, steps * every)
