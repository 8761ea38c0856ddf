"""LLaMA-Factory arguments that follow from the launcher's keys and from the data; what the user sets stays."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from cpt_launcher.config import Evaluation

SAVE_STEPS = 500  # transformers' default
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
        return f"packs batches of {self.batch:,} documents in {how}: at most {lost} lost"


def packing(train: Mapping[str, object], documents: int, text_bytes: int) -> Packing | None:
    """At most 0.1 % lost where the corpus has more than 1,000 blocks, else at most one block; None where the arguments
    say something themselves, or nothing is packed.
    """
    block = train.get("cutoff_len", 2048)
    said = {"preprocessing_num_workers", "preprocessing_batch_size", "streaming", "tokenized_path"} & set(train)
    if said or train.get("packing") is False or not isinstance(block, int) or block < 1 or documents < 1:
        return None
    blocks = (text_bytes // BYTES_PER_TOKEN + documents) // block
    most = max(1, blocks // BLOCKS_PER_BATCH)
    processes = min(MOST_PROCESSES, most)
    each = most // processes
    batch = math.ceil(math.ceil(documents / processes) / each)
    return Packing(processes, batch, processes * each, blocks)


def evaluation(held_out: Evaluation | None, train: Mapping[str, object]) -> dict[str, object]:
    """What has the Trainer evaluate before the first step (the base model), at every save, and at the end."""
    if held_out is None:
        return {}
    what: dict[str, object] = {"val_size": held_out.share} if held_out.share else {}
    if held_out.datasets:
        what["eval_dataset"] = ",".join(held_out.datasets)
    return {
        **what,
        "do_eval": True,
        "eval_on_start": True,
        "eval_strategy": "steps",
        "eval_steps": train.get("save_steps", SAVE_STEPS),
        "per_device_eval_batch_size": train.get("per_device_train_batch_size", 1),
    }
