"""How long a step takes, from the shape, the settings and the GPU. In seconds.

The constants were fitted to eight settings measured on one H200 (torch 2.11, DeepSpeed 0.16.9, liger-kernel 0.8.4);
other cards are scaled by their datasheets. docs/plan.md says how far that was off, and for what it was not tried.
"""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from pathlib import Path

from cpt_launcher.plan.memory import Setting, per_token

TABLE = Path(__file__).parents[1] / "data" / "gpus.json"
# Of the datasheet's dense bf16 rate: the model's matrix products, and attention's forward and backward by SDPA, with a
# mask (Gemma 3 always has one) and without.
PRODUCTS, MASKED, CAUSAL = 0.72, (0.25, 0.19), (0.35, 0.30)
# How often what a layer keeps for its backward goes through the GPU's memory in all, at the datasheet's bandwidth.
PASSES_FUSED, PASSES = 16, 24
LOGIT = 41  # bytes moved per logit without a fused loss
ADAM_FUSED, ADAM = 38, 92  # bytes moved per parameter
# Seconds the host needs for one pass through one layer: below it, the GPU waits for work.
LAUNCH, LAUNCH_ZERO3 = 0.003, 0.010
UNHIDDEN = 0.25  # of ZeRO-3's host time, what no computing hides
# Beside its steps: seconds until the first one, as seen (docs/plan.md), and bytes a second to the storage, assumed.
START, SAVE_RATE = 90, 1e9


@dataclass(frozen=True)
class Gpu:
    """A card: bytes of memory, dense bf16 operations a second by its datasheet, bytes a second of its memory, and of
    the links to the others.
    """

    name: str
    memory: float
    rate: float
    bandwidth: float
    link: float


@dataclass(frozen=True)
class Pace:
    """Seconds: of a step's GPU work by part, of its communication, of the host, and of the step. `rate` in tokens a
    second of one GPU; `useful` in operations a second, six per trained parameter and token.
    """

    products: float
    attention: float
    traffic: float
    optimizer: float
    communication: float
    host: float
    step: float
    rate: float
    useful: float


def gpus() -> tuple[str, ...]:
    """The cards that are known."""
    return tuple(_table())


def gpu(name: str) -> Gpu:
    """A card by its name, as in `gpus`."""
    row = _table()[name]
    return Gpu(name, row["bytes"], row["tflops"] * 1e12, row["bandwidth"], row["link"])


@functools.cache
def _table() -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = json.loads(TABLE.read_text(encoding="utf-8"))
    return found


def estimate(setting: Setting, card: Gpu) -> Pace:
    """The parts of a step; each once for every micro-batch but the optimizer."""
    shape, tokens, times = setting.shape, setting.tokens, setting.accumulation
    again = 1 if setting.checkpointing else 0
    passes = 2 + again
    operations = 6 * shape.trained + 2 * again * shape.layers * shape.per_layer
    if not shape.tied:
        operations -= 6 * shape.head  # the embedding multiplies nothing
    products = times * operations * tokens / (card.rate * PRODUCTS)
    attention = times * _attention(setting, card, again)
    moved = (PASSES_FUSED if setting.fused else PASSES) * per_token(shape, fused=setting.fused) * shape.layers
    logits = 0 if setting.fused else LOGIT * shape.vocabulary
    traffic = times * tokens * (moved * (4 / 3 if again else 1) + logits) / card.bandwidth
    sharded = shape.trained / (setting.workers if setting.stage else 1)
    optimizer = (ADAM_FUSED if setting.fused_optimizer else ADAM) * sharded / card.bandwidth
    communication = _communication(setting) / card.link
    host = times * passes * shape.layers * (LAUNCH_ZERO3 if setting.stage == 3 else LAUNCH)
    busy = products + attention + traffic
    if setting.stage == 3:
        step = max(host, busy + UNHIDDEN * host, communication) + optimizer
    else:
        step = max(host, busy) + optimizer + max(0.0, communication - busy * 2 / 3)
    rate = setting.tokens_per_step / setting.workers / step
    return Pace(
        products, attention, traffic, optimizer, communication, host, step, rate, 6 * shape.trained * rate
    )  # fmt: skip


def evaluation(setting: Setting, card: Gpu, tokens: int) -> float:
    """Seconds for one forward over `tokens`, shared by the workers, in micro-batches of `setting.evaluated`."""
    shape = setting.shape
    each = setting.block * max(1, setting.evaluated)
    batches = -(-tokens // (each * setting.workers))
    operations = 2 * (shape.trained - (0 if shape.tied else shape.head))
    forward, _ = MASKED if shape.kind == "gemma3" else CAUSAL
    square = 4 * setting.block * shape.queries * shape.layers * (1 if shape.kind == "gemma3" else 0.5)
    computing = each * (operations / PRODUCTS + square / forward) / card.rate
    moved = (PASSES_FUSED if setting.fused else PASSES) * per_token(shape, fused=setting.fused) * shape.layers / 3
    traffic = each * (moved + LOGIT * shape.vocabulary) / card.bandwidth
    host = shape.layers * (LAUNCH_ZERO3 if setting.stage == 3 else LAUNCH)
    gathered = 2.0 * shape.trained * (setting.workers - 1) / setting.workers if setting.stage == 3 else 0.0
    return batches * max(host, computing + traffic, gathered / card.link)


def _attention(setting: Setting, card: Gpu, again: int) -> float:
    """Two products of the block's square forward, five backward; without a mask, half of each is left out."""
    shape = setting.shape
    masked = shape.kind == "gemma3"
    forward, backward = MASKED if masked else CAUSAL
    square = 4 * setting.block * shape.queries * shape.layers * setting.tokens * (1 if masked else 0.5)
    return square * ((1 + again) / forward + 2.5 / backward) / card.rate


def _communication(setting: Setting) -> float:
    """Bytes that each GPU sends for a step (https://arxiv.org/abs/1910.02054, section 7): ZeRO-2 reduces the gradients
    of every micro-batch and gathers the weights once; ZeRO-3 gathers them twice and reduces once in every micro-batch.
    """
    share = (setting.workers - 1) / setting.workers
    once = 2.0 * setting.shape.trained * share
    if setting.stage == 3:
        return 3 * once * setting.accumulation
    return once * (setting.accumulation + 1) if setting.stage == 2 else 4 * once
