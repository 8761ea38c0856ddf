"""What the GPU benchmarks share: random models of known shapes, and a card's ceiling.

`python benchmarks/gpu.py ceiling`, `... model FOLDER NAME`, `... bare NAME BATCH`: in a process of their own, so that
the GPU's memory is free again afterwards.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable

import torch

from cpt_launcher.plan import shape

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
CLASSES = {"gemma3": "Gemma3Text", "llama": "Llama", "qwen3": "Qwen3"}  # a shape's kind, and transformers' names


def random_model(name: str, **settings: object) -> torch.nn.Module:
    """A random model of one of `cpt plan`'s shapes in bf16, without a vision tower; `settings` go to its config."""
    import transformers

    kind = CLASSES[shape.find(name).kind]
    row = {key: value for key, value in shape.known()[name].items() if key not in ("model_type", "not_trained")}
    values = getattr(transformers, f"{kind}Config")(**row, max_position_embeddings=8192, **settings)
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device(DEVICE):
            found: torch.nn.Module = getattr(transformers, f"{kind.removesuffix('Text')}ForCausalLM")(values)
    finally:
        torch.set_default_dtype(torch.float32)
    return found


def kernels(kind: str) -> None:
    """liger's kernels in place of a model's, as `enable_liger_kernel` does it."""
    from liger_kernel import transformers as liger

    getattr(liger, f"apply_liger_kernel_to_{ {'gemma3': 'gemma3_text'}.get(kind, kind) }")()


def timed(work: Callable[[], object], count: int) -> list[float]:
    """Seconds of each of `count` runs, after three that warm up."""
    times = []
    for _ in range(3 + count):
        torch.cuda.synchronize()
        began = time.monotonic()
        work()
        torch.cuda.synchronize()
        times.append(time.monotonic() - began)
    return times[3:]


def bare(name: str, batch: int, block: int = 2048) -> list[float]:
    """Seconds of forward and backward alone, five times: no optimizer, no DeepSpeed, nothing recomputed."""
    kernels(shape.find(name).kind)
    model = random_model(name, attn_implementation="sdpa").train()
    tokens = torch.randint(5, 20000, (batch, block), device=DEVICE)

    def both() -> None:
        model(input_ids=tokens, labels=tokens, attention_mask=torch.ones_like(tokens), use_cache=False).loss.backward()
        model.zero_grad()

    return timed(both, 5)


def ceiling() -> float:
    """Of bf16 matrix products of random 8192 x 8192 matrices, in operations a second."""
    left, right = (torch.randn(8192, 8192, device=DEVICE, dtype=torch.bfloat16) for _ in range(2))
    return 2 * 8192**3 / statistics.median(timed(lambda: left @ right, 20))


if __name__ == "__main__":
    if sys.argv[1] == "ceiling":
        print(torch.cuda.get_device_name(), "torch", torch.__version__)
        print(ceiling())
    elif sys.argv[1] == "bare":
        print(*bare(sys.argv[2], int(sys.argv[3])))
    else:
        random_model(sys.argv[3], pad_token_id=0).save_pretrained(sys.argv[2])  # type: ignore[operator]
