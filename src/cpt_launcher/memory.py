"""What a training takes of a GPU's memory, by part, from the shape of the model and the settings. In bytes.

Counted are the tensors that PyTorch, DeepSpeed 0.16.9 and transformers 4.52 hold; docs/plan.md compares the sums with
measured peaks. P stands for the parameters that are trained, A for those that are loaded, N for the workers.
"""

from __future__ import annotations

from dataclasses import dataclass

from cpt_launcher.shape import Shape

# Allowances: for the CUDA context, cuBLAS and NCCL, in bytes, and for what the allocator cannot use of what it holds.
CONTEXT, FRAGMENTED = 1.5e9, 0.04
LOGIT = 10  # bytes per logit without a fused loss: in bf16, upcast to fp32, and the gradient of that


@dataclass(frozen=True)
class Setting:
    """What memory and time depend on. `block` in tokens; buckets in elements; `stage` 0 is plain data parallelism."""

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

    @property
    def tokens(self) -> int:
        """Of a micro-batch."""
        return self.block * self.micro_batch

    @property
    def tokens_per_step(self) -> int:
        """Of all workers."""
        return self.tokens * self.accumulation * self.workers


@dataclass(frozen=True)
class Memory:
    """Bytes on each GPU, and of host memory for all workers of a node together. `step` is what the optimizer's step
    takes for a moment, when the activations are gone.
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
    gradients_late: bool = False

    @property
    def peak(self) -> float:
        """The most that is allocated at once: as the backward begins, or in the optimizer's step. ZeRO-2 makes its
        gradients' place in the backward, when activations have gone (stage_1_and_2.py, `copy_grads_in_partition`).
        """
        held = self.weights + self.optimizer
        begins = self.activations + self.logits + self.buckets + (0 if self.gradients_late else self.gradients)
        return held + max(begins, self.gradients + self.step)

    @property
    def needed(self) -> float:
        """What a GPU must have for it."""
        return self.peak * (1 + FRAGMENTED) + CONTEXT


def auto_buckets(shape: Shape) -> dict[str, int]:
    """What `auto` in a DeepSpeed JSON becomes, in elements (transformers, integrations/deepspeed.py)."""
    return {
        "reduce_bucket_size": shape.hidden**2,
        "stage3_prefetch_bucket_size": int(0.9 * shape.hidden**2),
        "stage3_param_persistence_threshold": 10 * shape.hidden,
    }


def estimate(setting: Setting) -> Memory:
    """The parts, by https://arxiv.org/abs/1910.02054 (section 3) for the states, and by what is cited below."""
    shape, workers = setting.shape, setting.workers
    trained, loaded = shape.trained, shape.loaded
    sharded = trained / workers if setting.stage >= 1 else trained
    states = 0.0 if setting.offload_optimizer else 12.0 * sharded
    if setting.stage == 0:
        # LLaMA-Factory upcasts what is trained (model/adapter.py), so weights and gradients are in 32 bits.
        weights, gradients, states, after = 4.0 * loaded, 4.0 * trained, 8.0 * trained, 4.0 * loaded
    elif setting.stage < 3:
        weights = 2.0 * loaded
        gradients = 0.0 if setting.offload_optimizer else 2.0 * (sharded if setting.stage == 2 else trained)
        after = weights + (0 if setting.offload_optimizer else 4.0 * sharded)
    else:
        weights = 0.0 if setting.offload_parameters else 2.0 * loaded / workers
        gradients = 0.0 if setting.offload_optimizer else 2.0 * sharded
        after = weights + gradients + (0 if setting.offload_optimizer else 4.0 * sharded)
    offloaded = (16.0 * trained if setting.offload_optimizer else 0.0) + (
        2.0 * loaded if setting.offload_parameters else 0
    )
    return Memory(
        weights=weights,
        gradients=gradients,
        optimizer=states,
        activations=_activations(setting),
        logits=_logits(setting),
        buckets=_buckets(setting),
        step=_step(setting, sharded),
        after_setup=after,
        host=offloaded,
        gradients_late=setting.stage in (1, 2),
    )


def per_token(shape: Shape, *, fused: bool) -> int:
    """Bytes that a layer keeps of a token for its backward, in bf16 with SDPA; `fused` is with liger's kernels.

    What autograd saves was read off transformers 4.52's and liger-kernel's code: the inputs of the seven matrix
    products, q, the k and v repeated for every head, attention's output and its contiguous copy; of each norm its input
    in 16 bits (fused), or its input and its normed output in 32 (Llama's and Qwen's: and the latter in 16); of the
    activation the gate and the up projection (fused), and the activated gate.
    """
    hidden, wide, queries, keys = shape.hidden, shape.intermediate, shape.queries, shape.keys
    products = 2 * 2 * hidden + 2 * wide + 10 * queries
    if fused:
        norms = 2 * shape.norms * hidden + (2 * (queries + keys) if shape.normed_heads else 0)
        return products + norms + 4 * wide + (2 * keys if shape.normed_heads else 0)
    norm = 8 if shape.kind == "gemma3" else 6
    norms = norm * (shape.norms * hidden + (queries + keys if shape.normed_heads else 0))
    return products + norms + 6 * wide


def _activations(setting: Setting) -> float:
    shape = setting.shape
    layer = per_token(shape, fused=setting.fused)
    kept = 2 * shape.hidden * shape.layers + layer if setting.checkpointing else layer * shape.layers
    masks = 2 * 2 * setting.micro_batch * setting.block**2 if shape.kind == "gemma3" else 0
    return float(setting.tokens * (kept + 2 * 2 * shape.hidden) + masks)


def _logits(setting: Setting) -> float:
    """With liger's fused loss (0.8.2 and later, which adds up in place), a piece of them at a time, and the head's
    gradient, which is there from the forward on (https://arxiv.org/abs/2410.10989, section 3.3).
    """
    shape = setting.shape
    if not setting.fused:
        return float(LOGIT * setting.tokens * shape.vocabulary)
    return float(2 * piece(setting) * shape.vocabulary + 2 * shape.head)


def piece(setting: Setting) -> int:
    """Tokens that liger's fused loss takes at once: the power of two that is not below tokens * hidden / vocabulary."""
    pieces = -(-setting.shape.vocabulary // setting.shape.hidden)
    return 1 << max(0, (-(-setting.tokens // pieces) - 1).bit_length())


def _buckets(setting: Setting) -> float:
    """DeepSpeed's: gradients on their way (two where reducing overlaps with computing), the largest gradient before it
    is reduced, and under ZeRO-3 the weights that are gathered.
    """
    if setting.stage == 0:
        return 0.0
    largest = 2.0 * max(setting.shape.head, setting.shape.per_layer)
    if setting.stage < 3:
        bucket = 2.0 * min(setting.reduce_bucket, setting.shape.trained)
        return bucket * (2 if setting.overlap else 1) + largest
    gathered = 0.0
    if setting.workers > 1 or setting.offload_parameters:
        gathered = 2.0 * min(setting.live + setting.prefetch_bucket, setting.shape.loaded)
    return gathered + largest + 2.0 * setting.reduce_bucket


def _step(setting: Setting, sharded: float) -> float:
    """What the step holds beside the states. In ZeRO-1 and -2 the whole shard's gradients in 32 bits, and while they
    are made a flat copy in 16 and the old ones (runtime/zero/stage_1_and_2.py, `step`); in ZeRO-3 those of a
    sub-group; and a temporary as large (torch.optim.AdamW, foreach; fused has none).
    """
    if setting.offload_optimizer:
        return 0.0
    if setting.stage == 0:
        return 4.0 * sharded
    at_once = min(sharded, float(setting.sub_group)) if setting.stage == 3 else sharded
    if not setting.fused_optimizer:
        return 8.0 * at_once
    return (4.0 if setting.stage == 3 else 6.0) * at_once
