"""LLaMA-Factory arguments that follow from the launcher's keys and from the data; what the user sets stays."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cpt_launcher.config import arguments as schema
from cpt_launcher.wording import counted

BLOCKS_PER_BATCH = 1000  # a map batch loses less than one block: at most 0.1 %
MOST_PROCESSES = 16
# Bytes of text a token takes at most, so that blocks are not overestimated; English has about four.
BYTES_PER_TOKEN = 6


@dataclass(frozen=True)
class Packing:
    """How LLaMA-Factory's map over the documents is cut: `batches` of `batch` documents in each of `processes`. Each
    batch drops what does not fill a block (data/processor/pretrain.py), so at most `batches` of about `blocks` are
    lost.
    """

    processes: int
    batch: int
    batches: int
    blocks: int

    @property
    def arguments(self) -> dict[str, object]:
        chosen: dict[str, object] = {"preprocessing_batch_size": self.batch}
        return {**chosen, "preprocessing_num_workers": self.processes} if self.processes > 1 else chosen

    def __str__(self) -> str:
        how = f"{self.processes} processes" if self.processes > 1 else "one process"
        lost = "one block is" if self.batches == 1 else f"{self.batches} of about {self.blocks:,} blocks are"
        return f"packs batches of {counted(self.batch, 'document')} in {how}: at most {lost} lost"


def packing(train: Mapping[str, object], documents: int, text_bytes: int) -> Packing | None:
    """At most 0.1 % lost where the corpus has more than 1,000 blocks, else at most one block; None where the arguments
    say something themselves, or nothing is packed.
    """
    block = train.get("cutoff_len", _default("cutoff_len"))
    said = {"preprocessing_num_workers", "preprocessing_batch_size", "streaming", "tokenized_path"} & set(train)
    if said or train.get("packing") is False or not isinstance(block, int) or block < 1 or documents < 1:
        return None
    blocks = (text_bytes // BYTES_PER_TOKEN + documents) // block
    most = max(1, blocks // BLOCKS_PER_BATCH)
    processes = min(MOST_PROCESSES, most)
    each = most // processes
    batch = math.ceil(math.ceil(documents / processes) / each)
    return Packing(processes, batch, processes * each, blocks)


def evaluation(datasets: Sequence[str], train: Mapping[str, object], device: str) -> dict[str, object]:
    """What has the Trainer evaluate before the first step (the base model), at every save, and at the end.

    On CPU workers one block at a time, which takes no longer and is the exact mean: several workers' last batches are
    filled up with blocks that were there already (accelerate, `even_batches`), and count with the batch's mean.

    With liger one block at a time: its fused loss is for training alone, and all logits of a training's micro-batch are
    more than many cards have (5 GB for a block of 2,048 tokens and a vocabulary of 262 k).
    """
    if not datasets:
        return {}
    batch = train.get("per_device_train_batch_size", 1)
    return {
        "eval_dataset": ",".join(datasets),
        "do_eval": True,
        "eval_on_start": True,
        "eval_strategy": "steps",
        "eval_steps": train.get("save_steps", _default("save_steps")),
        "per_device_eval_batch_size": 1 if train.get("enable_liger_kernel") or device == "cpu" else batch,
    }


def _default(name: str) -> object:
    """LLaMA-Factory's."""
    return schema.load().arguments[name].default
