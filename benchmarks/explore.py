"""What a setting does to a step: time, profile and losses, on one GPU, with `planned.py`'s parts.

`python benchmarks/explore.py times [TEXT]`: each variation of the recommended recipe whose name holds TEXT, in its own
process. `... profile [TEXT]`: where a step's time goes. `... losses`: two recipes from the same weights on one
text.
"""

from __future__ import annotations

import functools
import json
import re
import statistics
import sys
from functools import partial
from typing import Any

import torch
from planned import GEMMA1, GEMMA4, ROOT, each, gib, greet, label, make, measure

from cpt_launcher.plan.memory import Setting

FAST, SHARDED = (GEMMA4, 1, 2, 2048, 8, False, True, True), (GEMMA4, 1, 3, 2048, 8, False, True, True)
SHORT, LONG = (GEMMA4, 1, 2, 1024, 16, False, True, True), (GEMMA4, 1, 2, 4096, 4, False, True, True)
FLASH = {"attention": "flash_attention_2"}
WHOLE = {"stage3_module_granularity_threshold": 30_000_000}
PREFETCH = {"stage3_prefetch_bucket_size": 200_000_000}
SMALL = {"reduce_bucket_size": 50_000_000, "allgather_bucket_size": 50_000_000}
EXPAND = {"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"}
Variation = tuple[str, tuple[Any, ...], dict[str, Any], dict[str, str]]
# name, setting, what measure() is told, environment beside EXPAND
VARIATIONS: list[Variation] = [
    ("ZeRO-2", FAST, {}, {}),
    ("ZeRO-2, flash-attn", FAST, FLASH, {}),
    ("ZeRO-2, plain allocator", FAST, {}, {"PYTORCH_CUDA_ALLOC_CONF": ""}),
    ("ZeRO-2, OMP_NUM_THREADS=1", FAST, {}, {"OMP_NUM_THREADS": "1"}),
    ("ZeRO-2, buckets 5e7", FAST, {"zero": SMALL}, {}),
    ("ZeRO-2, overlap_comm false", FAST, {"zero": {"overlap_comm": False}}, {}),
    ("ZeRO-2, blocks of 1,024", SHORT, {}, {}),
    ("ZeRO-2, blocks of 4,096", LONG, {}, {}),
    ("ZeRO-2, flash-attn, blocks of 4,096", LONG, FLASH, {}),
    ("ZeRO-2, again", FAST, {}, {}),
    ("ZeRO-3", SHARDED, {}, {}),
    ("ZeRO-3, layers whole", SHARDED, {"zero": WHOLE}, {}),
    ("ZeRO-3, layers whole, OMP_NUM_THREADS=1", SHARDED, {"zero": WHOLE}, {"OMP_NUM_THREADS": "1"}),
    ("ZeRO-3, layers whole, flash-attn", SHARDED, {"zero": WHOLE, **FLASH}, {}),
    ("ZeRO-3, layers whole, prefetch 2e8", SHARDED, {"zero": {**WHOLE, **PREFETCH}}, {}),
    ("ZeRO-2, at the end", FAST, {}, {}),
    ("ZeRO-2, flash-attn, at the end", FAST, FLASH, {}),
    ("ZeRO-2, torch.compile", FAST, {"compiled": True}, {}),
]  # fmt: skip
LONGEST, LOSSES, STEPS = 14, 30, 8
KINDS = {
    "attention": r"fmha|flash|attention|cutlass[FB]|sdpa",
    "matrix products": r"gemm|nvjet|cutlass|cublas",
    "loss": r"cross_entropy|softmax|nll",
    "optimizer": r"multi_tensor|[Aa]dam|foreach",
    "norms, gate, rotation": r"rms_norm|geglu|swiglu|rope",
    "elementwise, copies": r"elementwise|[Cc]opy|Memcpy|Memset|CatArray|index|where|tril|reduce",
}


def profile(row: tuple[Any, ...], told: dict[str, Any]) -> str:
    """Where a step's GPU time goes, by kind of kernel, and the longest ones."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiler

    one, trace = make(row), profiler(activities=[ProfilerActivity.CUDA])

    def look(step: int) -> None:
        torch.cuda.synchronize()
        if step == 3:
            trace.start()
        elif step == 4:
            trace.stop()

    seen = measure(one, 5, look=look, **told)
    sums: dict[str, float] = {}
    rows = []
    for event in trace.key_averages():
        spent = event.self_device_time_total / 1e6
        kind = next((kind for kind, pattern in KINDS.items() if re.search(pattern, event.key)), "other")
        sums[kind] = sums.get(kind, 0.0) + spent
        rows.append((spent, event.count, event.key))
    rate = one.tokens / seen["seconds"][2]
    kernels = sum(sums.values())
    lines = [
        f"{label(one)}: step {seen['seconds'][2]:.3f} s, {rate:,.0f} tokens/s, kernels {kernels:.3f} s, "
        f"peak {gib(seen['peak'])} GiB, loss {seen['losses'][-1]:.3f}"
    ]
    lines += [f"  {spent:.3f} s  {kind}" for kind, spent in sorted(sums.items(), key=lambda item: -item[1])]
    longest = sorted(rows, reverse=True)[:LONGEST]
    return "\n".join([*lines, *(f"    {spent:.4f} s {count:5}  {name[:100]}" for spent, count, name in longest)])


@functools.cache
def corpus() -> torch.Tensor:
    """The demo's corpus in bytes."""
    lines = (ROOT / "dataset-configs" / "moby_dick.jsonl").read_text().splitlines()
    joined = "\n".join(json.loads(line)["text"] for line in lines)
    return torch.frombuffer(bytearray(joined.encode()), dtype=torch.uint8)


def text_blocks(one: Setting, number: int, *, turned: bool) -> torch.Tensor:
    """A micro-batch of the demo's corpus, a token a byte; `turned` has its rows the other way round, which changes
    nothing but the order of sums.
    """
    whole = corpus()
    count = one.tokens
    start = (number * count) % (whole.numel() - count)
    rows = whole[start : start + count].long().view(one.micro_batch, one.block) + 5
    return rows.flip(0) if turned else rows


def same_losses() -> None:
    """Two recipes from the same weights on the same text, and what reordering sums alone does to the first."""
    guide = make((GEMMA1, 1, 3, 512, 4, True, False))
    fast = make((GEMMA1, 1, 2, 512, 4, False, True, True))
    wanted = ((guide, False), (guide, True), (fast, False))
    jobs = [(measure, (one, LOSSES, 3e-5, partial(text_blocks, one, turned=turned))) for one, turned in wanted]
    found = []
    names = ("ZeRO-3, recomputes", "the same, rows turned", "ZeRO-2, liger, fused AdamW")
    for name, seen in zip(names, each(jobs), strict=True):
        if isinstance(seen, str):
            raise SystemExit(f"{name}: {seen}")
        found.append(seen["losses"])
        print(f"losses, {name}: {' '.join(f'{loss:.4f}' for loss in seen['losses'])}", flush=True)
    base, noise, ours = found
    for name, other in (("reordering", noise), ("the fast recipe", ours)):
        apart = [abs(a - b) for a, b in zip(base, other, strict=True)]
        print(f"  {name}: mean difference {statistics.mean(apart):.4f}, largest {max(apart):.4f}", flush=True)


def chosen(part: str) -> list[Variation]:
    """The variations whose name holds a text; `=NAME` is that one alone."""
    return [one for one in VARIATIONS if (part.startswith("=") and one[0] == part[1:]) or part in one[0]]


def envs(wanted: list[Variation]) -> list[dict[str, str]]:
    """The environment of each."""
    return [{**EXPAND, **env} for *_, env in wanted]


def times(part: str) -> None:
    """A row for each variation: the median step and its range, without the first three."""
    print("| variation | s a step, median (range) | tokens/s | peak GiB | loss |\n| --- | --- | --- | --- | --- |")
    wanted = chosen(part)
    jobs = [(partial(measure, **told), (make(row), STEPS)) for _, row, told, _ in wanted]
    for (name, row, _, _), seen in zip(wanted, each(jobs, envs(wanted)), strict=True):
        if isinstance(seen, str):
            print(f"| {name} | {seen[:300]} |", flush=True)
            continue
        taken = seen["seconds"][3:]
        middle = statistics.median(taken)
        print(f"| {name} | {middle:.3f} ({min(taken):.3f} to {max(taken):.3f}) | {make(row).tokens / middle:,.0f} "
              f"| {gib(seen['peak'])} | {seen['losses'][-1]:.3f} |", flush=True)  # fmt: skip


def main() -> None:
    """Run what is asked for."""
    what, part = (*sys.argv[1:], "", "")[:2]
    if what not in ("times", "profile", "losses"):
        raise SystemExit(__doc__)
    if torch.cuda.is_available():
        print(next(each([(greet, ())])), flush=True)
    if what == "losses":
        same_losses()
    elif what == "profile":
        wanted = chosen(part)
        for said in each([(profile, (row, told)) for _, row, told, _ in wanted], envs(wanted)):
            print(said, flush=True)
    else:
        times(part)


if __name__ == "__main__":
    main()
