from __future__ import annotations

import math
import random

import pytest

from cpt_launcher.plan.derive import BYTES_PER_TOKEN, Packing, evaluation, packing


def lost_blocks(lengths: list[int], block: int, processes: int, batch: int) -> int:
    """Tokens that LLaMA-Factory drops, as `datasets` cuts the documents: contiguous shards, then batches."""
    shards = [lengths[len(lengths) * n // processes : len(lengths) * (n + 1) // processes] for n in range(processes)]
    batches = [shard[at : at + batch] for shard in shards for at in range(0, len(shard), batch)]
    return sum(sum(found) % block for found in batches)


@pytest.mark.parametrize("seed", range(20))
def test_at_most_a_thousandth_is_lost_or_one_block(seed: int) -> None:
    chance = random.Random(seed)
    block = chance.choice([128, 512, 2048])
    lengths = [chance.randrange(1, chance.choice([50, 2000, 20_000])) for _ in range(chance.choice([7, 500, 20_000]))]
    chosen = packing({"cutoff_len": block}, len(lengths), sum(lengths) * chance.choice([3, 4, BYTES_PER_TOKEN]))
    assert chosen is not None
    lost, tokens = lost_blocks(lengths, block, chosen.processes, chosen.batch), sum(lengths)
    if tokens > 1000 * block * 2:  # sure to be above the limit by bytes too
        assert lost <= tokens / 1000 + block
    assert lost <= max(block, tokens / 1000 + block)
    assert lost < block * chosen.batches
    assert math.ceil(len(lengths) / chosen.processes / chosen.batch) * chosen.processes <= chosen.batches


def test_what_the_user_says_stays() -> None:
    for given in ({"preprocessing_num_workers": 16}, {"preprocessing_batch_size": 10}, {"packing": False}):
        assert packing({"cutoff_len": 128, **given}, 100, 100_000) is None
    assert packing({}, 0, 0) is None
    small = packing({"cutoff_len": 512}, 100, 100_000)
    assert small is not None
    assert small.arguments == {"preprocessing_batch_size": 100}
    assert str(small) == "packs batches of 100 documents in one process: at most one block is lost"


def test_what_is_held_out_is_evaluated_first_and_at_every_save() -> None:
    assert evaluation((), {}, "gpu") == {}
    train = {"save_steps": 50, "per_device_train_batch_size": 8}
    assert evaluation(("a", "b"), train, "gpu") == {
        "eval_dataset": "a,b", "do_eval": True, "eval_on_start": True, "eval_strategy": "steps", "eval_steps": 50,
        "per_device_eval_batch_size": 8,
    }  # fmt: skip
    assert evaluation(("a",), {}, "gpu")["eval_steps"] == 500
    assert evaluation(("a",), {**train, "enable_liger_kernel": True}, "gpu")["per_device_eval_batch_size"] == 1
    assert evaluation(("a",), train, "cpu")["per_device_eval_batch_size"] == 1


def test_one_document_is_no_plural() -> None:
    assert str(Packing(1, 1, 1, 1)).startswith("packs batches of 1 document in one process: ")
