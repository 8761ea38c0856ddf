"""What a training takes of a GPU's memory, by part, from the shape of the model and the settings. In bytes.

Counted are the tensors that PyTorch, DeepSpeed 0.16.9 and transformers 4.52 hold; docs/plan.md compares the sums with
measured peaks. P stands for the parameters that are trained, A for those that are loaded, N for the workers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from cpt_launcher.plan.shape import Shape

Precision = Literal["bf16", "fp16", "fp32", "pure_bf16"]
# Allowances: for the CUDA context, cuBLAS and NCCL, in bytes, and for what the allocator cannot use of what it holds.
CONTEXT, FRAGMENTED = 1.5e9, 0.04
# What a worker's process holds before it has a tensor: Python, torch, Ray, transformers, datasets, DeepSpeed and
# LLaMA-Factory; and what a run's other processes hold together (launcher, driver, trial actor, Ray's own).
LIBRARIES, OTHERS = 1e9, 3e9


@dataclass(frozen=True)
class Setting:
    """What memory and time depend on. `block` in tokens; buckets in elements; `stage` 0 is plain data parallelism, by
    DeepSpeed or, without `deepspeed`, by torch. `evaluated` is the micro-batch of an evaluation, 0 without any.
    """

    shape: Shape
    workers: int
    stage: int
    block: int
    micro_batch: int
    accumulation: int = 1
    checkpointing: bool = True
    fused: bool = False
    fused_optimizer: bool = False
    offload_optimizer: bool = False
    offload_parameters: bool = False
    overlap: bool = False
    reduce_bucket: int = 500_000_000
    prefetch_bucket: int = 50_000_000
    live: int = 1_000_000_000
    sub_group: int = 1_000_000_000
    precision: Precision = "bf16"
    deepspeed: bool = True
    evaluated: int = 0

    @property
    def tokens(self) -> int:
        """Of a micro-batch."""
        return self.block * self.micro_batch

    @property
    def tokens_per_step(self) -> int:
        """Of all workers."""
        return self.tokens * self.accumulation * self.workers

    @property
    def wide(self) -> int:
        """Bytes of a number in the forward and backward."""
        return 4 if self.precision == "fp32" else 2


@dataclass(frozen=True)
class Memory:
    """Bytes on each GPU, and of host memory for all workers of a node together. `step` is what the optimizer's step
    takes for a moment, when the activations are gone, beside weights, states and gradients; `evaluation` what an
    evaluation takes beside weights and states.
    """

    weights: float
    gradients: float
    optimizer: float
    activations: float
    logits: float
    buckets: float
    step: float
    after_setup: float
    host: float
    evaluation: float = 0
    gradients_late: bool = False

    @property
    def passes(self) -> float:
        """As the backward begins, beside weights and states. ZeRO-2 makes its gradients' place only in the backward,
        when activations have gone (stage_1_and_2.py, `copy_grads_in_partition`).
        """
        return self.activations + self.logits + self.buckets + (0 if self.gradients_late else self.gradients)

    @property
    def peak(self) -> float:
        """The most that is allocated at once: as the backward begins, in the optimizer's step, or in an evaluation."""
        return self.weights + self.optimizer + max(self.passes, self.gradients + self.step, self.evaluation)

    @property
    def needed(self) -> float:
        """What a GPU must have for it."""
        return self.peak * (1 + FRAGMENTED) + CONTEXT

    @property
    def resident(self) -> float:
        """What the process of a CPU worker holds: its tensors, and the libraries."""
        return self.peak + LIBRARIES


def auto_buckets(shape: Shape) -> dict[str, int]:
    """What `auto` in a DeepSpeed JSON becomes, in elements (transformers, integrations/deepspeed.py)."""
    return {
        "reduce_bucket_size": shape.hidden**2,
        "stage3_prefetch_bucket_size": int(0.9 * shape.hidden**2),
        "stage3_param_persistence_threshold": 10 * shape.hidden,
    }


def estimate(setting: Setting) -> Memory:
    """The parts, by https://arxiv.org/abs/1910.02054 (section 3) for the states, and by what is cited below."""
    trained, loaded = setting.shape.trained, setting.shape.loaded
    weights, gradients, states, after = _sharded(setting) if setting.stage else _replicated(setting)
    offloaded = (16.0 * trained if setting.offload_optimizer else 0.0) + (
        float(setting.wide * loaded) if setting.offload_parameters else 0
    )
    return Memory(
        weights=weights,
        gradients=gradients,
        optimizer=states,
        activations=_activations(setting),
        logits=_logits(setting),
        buckets=_buckets(setting),
        step=_step(setting),
        after_setup=after,
        host=offloaded,
        evaluation=_evaluation(setting, gradients),
        gradients_late=setting.stage in (1, 2),
    )


def _sharded(setting: Setting) -> tuple[float, float, float, float]:
    """Weights, gradients, optimizer states, and all of it after the set-up, under ZeRO.

    DeepSpeed casts the model to 16 bits where bf16 or fp16 is on (runtime/engine.py, `_configure_distributed_model`),
    and leaves it alone otherwise: what is trained in 32 bits then, by LLaMA-Factory's upcast (model/adapter.py,
    `init_adapter`) and under ZeRO-3 by zero.Init, which also loads the rest so. The optimizer's copy in 32 bits is
    there in any case, a clone where the weights have 32 (zero/stage_1_and_2.py, zero/stage3.py: `.clone().float()`), so
    that 32 bits take 16 bytes a parameter and 4 of gradients. Gradients are kept as the engine's type says
    (`get_data_types`), which is 32 bits with pure_bf16, of which DeepSpeed knows nothing.
    """
    shape, stage, wide = setting.shape, setting.stage, setting.wide
    sharded = shape.trained / setting.workers
    gradient = 4.0 if setting.precision == "pure_bf16" else float(wide)
    weights = float(wide * shape.trained + (wide if stage == 3 else 2) * shape.not_trained)
    weights = 0.0 if setting.offload_parameters else weights / (setting.workers if stage == 3 else 1)
    if setting.offload_optimizer:
        return weights, 0.0, 0.0, weights
    gradients = gradient * (shape.trained if stage == 1 else sharded)
    after = weights + 4.0 * sharded + (gradients if stage == 3 else 0)
    return weights, gradients, 12.0 * sharded, after


def _replicated(setting: Setting) -> tuple[float, float, float, float]:
    """The same without ZeRO. torch's own: LLaMA-Factory upcasts what is trained (model/adapter.py), unless pure_bf16
    says to keep all of it in 16 bits, the states too; there is no other copy. What is not trained stays as it was
    loaded. DeepSpeed's bf16 optimizer shares out its states and keeps gradients in 16 bits and in 32
    (runtime/bf16_optimizer.py), its fp16 one shares nothing (runtime/fp16/fused_optimizer.py).
    """
    trained, rest = setting.shape.trained, 2.0 * setting.shape.not_trained
    by_engine = setting.deepspeed and setting.precision in ("bf16", "fp16")
    if by_engine and setting.precision == "bf16":
        sharded = trained / setting.workers
        return 2.0 * trained + rest, 6.0 * trained, 12.0 * sharded, 6.0 * trained + rest + 4.0 * sharded
    if by_engine:
        return 2.0 * trained + rest, 2.0 * trained, 12.0 * trained, 6.0 * trained + rest
    each = 2.0 if setting.precision == "pure_bf16" else 4.0
    return each * trained + rest, each * trained, 2 * each * trained, each * trained + rest


def per_token(shape: Shape, *, fused: bool, wide: int = 2) -> int:
    """Bytes that a layer keeps of a token for its backward, with SDPA, in numbers of `wide` bytes; `fused` is with
    liger's kernels.

    What autograd saves was read off transformers 4.52's and liger-kernel's code: the inputs of the seven matrix
    products, q, the k and v repeated for every head, attention's output and its contiguous copy; of each norm its input
    (fused), or its input and its normed output in 32 bits (Llama's and Qwen's: the latter in `wide`); of the activation
    the gate and the up projection (fused), and the activated gate.
    """
    hidden, inner, queries, keys = shape.hidden, shape.intermediate, shape.queries, shape.keys
    products = wide * (2 * hidden + inner + 5 * queries)
    if fused:
        norms = wide * (shape.norms * hidden + (queries + keys if shape.normed_heads else 0))
        return products + norms + wide * (2 * inner + (keys if shape.normed_heads else 0))
    norm = 8 if shape.kind == "gemma3" else 4 + wide
    norms = norm * (shape.norms * hidden + (queries + keys if shape.normed_heads else 0))
    return products + norms + 3 * wide * inner


def _activations(setting: Setting) -> float:
    shape, wide = setting.shape, setting.wide
    layer = per_token(shape, fused=setting.fused, wide=wide)
    kept = wide * shape.hidden * shape.layers + layer if setting.checkpointing else layer * shape.layers
    masks = 2 * wide * setting.micro_batch * setting.block**2 if shape.kind == "gemma3" else 0
    return float(setting.tokens * (kept + 2 * wide * shape.hidden) + masks)


def _logits(setting: Setting) -> float:
    """Without a fused loss: the logits, their softmax and its gradient in 32 bits (transformers, loss/loss_utils.py
    upcasts what is not). With liger's (0.8.2 and later, which adds up in place), a piece of them at a time, and the
    head's gradient, which is there from the forward on (https://arxiv.org/abs/2410.10989, section 3.3).
    """
    shape, wide = setting.shape, setting.wide
    if not setting.fused:
        return float((8 + wide) * setting.tokens * shape.vocabulary)
    return float(wide * piece(setting) * shape.vocabulary + wide * shape.head)


def _evaluation(setting: Setting, gradients: float) -> float:
    """A forward alone, with all logits, their copy in 32 bits and the softmax: liger's fused loss is for training
    (liger_kernel/transformers/model: `skip_logits = self.training`). ZeRO-3's gradients keep their place.
    """
    if not setting.evaluated:
        return 0.0
    shape, wide, tokens = setting.shape, setting.wide, setting.evaluated * setting.block
    logits = (8 if wide == 4 else 10) * tokens * shape.vocabulary
    layer = per_token(shape, fused=setting.fused, wide=wide) + 2 * wide * shape.hidden
    kept = _gathered(setting) + setting.wide * setting.reduce_bucket + gradients if setting.stage == 3 else 0.0
    return float(logits + tokens * layer + kept)


def piece(setting: Setting) -> int:
    """Tokens that liger's fused loss takes at once: the power of two that is not below tokens * hidden / vocabulary."""
    pieces = -(-setting.shape.vocabulary // setting.shape.hidden)
    return 1 << max(0, (-(-setting.tokens // pieces) - 1).bit_length())


def _buckets(setting: Setting) -> float:
    """DeepSpeed's: gradients on their way (two where reducing overlaps with computing), the largest gradient before it
    is reduced, and under ZeRO-3 the weights that are gathered. torch's own: as much as the gradients, which are not
    views of them (accelerate's default), and the copies in 16 bits that autocast keeps through the forward.
    """
    wide, trained = setting.wide, setting.shape.trained
    if not setting.stage:
        if setting.deepspeed:
            return 0.0
        reducing = (2.0 if setting.precision == "pure_bf16" else 4.0) * trained if setting.workers > 1 else 0.0
        return reducing + (2.0 * trained if setting.precision in ("bf16", "fp16") else 0)
    largest = float(wide * max(setting.shape.head, setting.shape.per_layer))
    if setting.stage < 3:
        return wide * setting.reduce_bucket * (2.0 if setting.overlap else 1.0) + largest
    return _gathered(setting) + largest + wide * setting.reduce_bucket


def _gathered(setting: Setting) -> float:
    if setting.workers == 1 and not setting.offload_parameters:
        return 0.0
    return float(setting.wide * min(setting.live + setting.prefetch_bucket, setting.shape.loaded))


def _step(setting: Setting) -> float:
    """What the step holds beside states and gradients. In ZeRO-1 and -2 the whole shard's gradients in 32 bits, and
    while they are made from 16 a flat copy of those (runtime/zero/stage_1_and_2.py, `step`); in ZeRO-3 those of a
    sub-group; and a temporary as large (torch.optim.AdamW, foreach; fused has none).
    """
    if setting.offload_optimizer:
        return 0.0
    trained = float(setting.shape.trained)
    if setting.stage == 0:
        copied = 4.0 * trained if setting.deepspeed and setting.precision == "fp16" else 0.0
        temporary = 2.0 if setting.precision == "pure_bf16" and not setting.deepspeed else 4.0
        return copied + (0 if setting.fused_optimizer else temporary * trained)
    sharded = trained / setting.workers
    at_once = min(sharded, float(setting.sub_group)) if setting.stage == 3 else sharded
    if not setting.fused_optimizer:
        return 8.0 * at_once
    return (6.0 if setting.stage < 3 and setting.wide == 2 else 4.0) * at_once
