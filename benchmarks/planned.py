"""What `cpt plan` says against what is measured: memory and time of many settings, on one GPU.

`python benchmarks/planned.py [--only TEXT] [--steps 4]`: for each setting a random model of the shape, transformers'
model code, liger's kernels where asked for, and `deepspeed.initialize` with the shipped JSON, `auto` filled in as
transformers does (integrations/deepspeed.py). Several workers are rank 0 of a process group whose collectives do
nothing (`torch.testing`'s fake one): what a rank allocates is real then; its time and its losses are not, and are not
shown. `--profile`: where a step's time goes. `--limit`: recipes for smaller cards, in a process that may allocate no
more than such a card has. `--losses`: two recipes from the same weights on the same text. `--only none`: no table.
PLANNED_ZERO in the environment is JSON that is added to `zero_optimization`.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import logging
import multiprocessing
import os
import re
import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from gpu import DEVICE, ceiling, random_model

from cpt_launcher import memory, pace, shape
from cpt_launcher.memory import Setting

ROOT = Path(__file__).resolve().parents[1]
CUDA = torch.cuda.is_available()


def text(model: str) -> shape.Shape:
    """Without a vision tower: that needs a processor, which no random model has."""
    return dataclasses.replace(shape.find(model), not_trained=0)


GEMMA4, GEMMA1 = "google/gemma-3-4b-pt", "google/gemma-3-1b-pt"
LLAMA, QWEN = "meta-llama/Llama-3.2-3B", "Qwen/Qwen3-4B-Base"
# model, workers, stage, block, micro-batch, recomputation, liger
SETTINGS = [
    (GEMMA4, 1, 3, 512, 1, True, False),
    (GEMMA4, 4, 3, 512, 1, True, False),
    (GEMMA4, 1, 2, 2048, 4, True, False),
    (GEMMA1, 1, 2, 2048, 4, False, False),
    (QWEN, 1, 2, 2048, 4, True, False),
    (LLAMA, 1, 3, 2048, 4, True, False),
    (GEMMA4, 1, 2, 2048, 8, False, True, True),
    (GEMMA4, 1, 3, 2048, 8, False, True, True),
    (GEMMA4, 1, 2, 2048, 16, True, True, True),
    (GEMMA4, 4, 2, 2048, 12, False, True, True),
    (GEMMA4, 4, 3, 2048, 12, False, True, True),
    (GEMMA4, 4, 2, 2048, 16, True, True, True),
    (GEMMA1, 1, 2, 2048, 16, False, True),
    (QWEN, 1, 2, 2048, 8, True, True),
    (LLAMA, 1, 2, 2048, 8, False, True),
    (LLAMA, 4, 3, 4096, 4, True, True),
]


def make(row: tuple[Any, ...]) -> Setting:
    """A setting with the buckets of the shipped JSON."""
    model, workers, stage, block, batch, recompute, fused = row[:7]
    kind = text(model)
    auto = memory.auto_buckets(kind)
    sharded = {
        "reduce_bucket": auto["reduce_bucket_size"],
        "prefetch_bucket": auto["stage3_prefetch_bucket_size"],
    }
    plain = Setting(
        kind, workers, stage, block, batch, checkpointing=recompute, fused=fused, fused_optimizer=len(row) > 7
    )
    return dataclasses.replace(plain, **sharded) if stage == 3 else dataclasses.replace(plain, overlap=True)


def config(one: Setting) -> dict[str, Any]:
    """The shipped DeepSpeed JSON, `auto` filled in."""
    value: dict[str, Any] = json.loads((ROOT / "deepspeed-configs" / f"ds_z{one.stage}_config.json").read_text())
    zero = value["zero_optimization"]
    auto = memory.auto_buckets(one.shape)
    zero |= {key: auto[key] for key in zero if zero[key] == "auto"}
    zero |= json.loads(os.environ.get("PLANNED_ZERO", "{}"))
    fixed = {
        "train_batch_size": one.micro_batch * one.workers, "train_micro_batch_size_per_gpu": one.micro_batch,
        "gradient_accumulation_steps": 1, "gradient_clipping": 1.0,
        "bf16": {"enabled": True}, "fp16": {"enabled": False},
    }  # fmt: skip
    return {**value, **fixed, "steps_per_print": 10**9}


def build(one: Setting) -> torch.nn.Module:
    """A random model of the shape in bf16, as LLaMA-Factory prepares one."""
    if one.fused:
        from liger_kernel import transformers as liger

        names = {"gemma3": "gemma3_text"}
        getattr(liger, f"apply_liger_kernel_to_{names.get(one.shape.kind, one.shape.kind)}")()
    model: Any = random_model(one.shape.name, attn_implementation="sdpa")
    model.config.use_cache = False
    if one.checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": True})
        model.enable_input_require_grads()
    found: torch.nn.Module = model.train()
    return found


def process_group(workers: int) -> None:
    """A process group of this process alone, or rank 0 of a fake one."""
    import deepspeed
    import torch.distributed as dist

    os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": str(workers), "MASTER_ADDR": "127.0.0.1"}
    os.environ["MASTER_PORT"] = "29511"
    if workers == 1:
        dist.init_process_group("nccl" if CUDA else "gloo", rank=0, world_size=1)
    else:
        from torch.testing._internal.distributed.fake_pg import FakeStore

        dist.init_process_group("fake", rank=0, world_size=workers, store=FakeStore())
    deepspeed.init_distributed("nccl" if CUDA else "gloo", verbose=False)


def measure(
    one: Setting,
    steps: int,
    rate: float = 1e-4,
    batch: Callable[[int], torch.Tensor] | None = None,
    look: Callable[[int], None] = lambda _: None,
) -> dict[str, Any]:
    """Peak bytes, seconds a step, and losses."""
    import deepspeed

    process_group(one.workers)
    model = build(one)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [parameter for parameter in trained if parameter.ndim > 1], "weight_decay": 0.0},
        {"params": [parameter for parameter in trained if parameter.ndim == 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=rate, fused=one.fused_optimizer or None)
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config(one))
    after = torch.cuda.memory_allocated() if CUDA else 0
    if CUDA:
        torch.cuda.reset_peak_memory_stats()
    generator = torch.Generator().manual_seed(1)
    times, losses = [], []
    for step in range(steps):
        look(step)
        if batch:
            tokens = batch(step).to(DEVICE)
        else:
            tokens = torch.randint(5, 20000, (one.micro_batch, one.block), generator=generator).to(DEVICE)
        began = time.monotonic()
        loss = engine(input_ids=tokens, labels=tokens, attention_mask=torch.ones_like(tokens)).loss
        engine.backward(loss)
        engine.step()
        losses.append(float(loss.detach()))
        times.append(time.monotonic() - began)
        del loss
    peak = torch.cuda.max_memory_allocated() if CUDA else 0
    return {"after": after, "peak": peak, "seconds": times, "losses": losses}


def child(job: Callable[..., Any], arguments: tuple[Any, ...], go: Any, out: Any) -> None:
    """A process of its own: what a DeepSpeed engine holds is free again only with its process."""
    import deepspeed  # noqa: F401
    import transformers

    with contextlib.suppress(ImportError):
        logging.getLogger("liger_kernel").setLevel(logging.ERROR)
        import liger_kernel.transformers  # noqa: F401
    transformers.logging.set_verbosity_error()
    logging.disable(logging.INFO)
    go.wait()
    try:
        out.put(job(*arguments))
    except torch.OutOfMemoryError as error:
        out.put(str(error).partition(". GPU")[0])
    except Exception as error:  # noqa: BLE001 - a row that fails is a row that says so
        out.put(f"failed: {type(error).__name__}: {error}")


def each(jobs: list[tuple[Callable[..., Any], tuple[Any, ...]]]) -> Iterator[Any]:
    """The result of each job, one after the other; the next ones import meanwhile."""
    spawn = multiprocessing.get_context("spawn")
    started: list[tuple[Any, Any, Any]] = []
    for number in range(len(jobs)):
        for job, arguments in jobs[len(started) : number + AHEAD]:
            go, out = spawn.Event(), spawn.Queue()
            process = spawn.Process(target=child, args=(job, arguments, go, out))
            process.start()
            started.append((process, go, out))
        process, go, out = started[number]
        go.set()
        yield out.get(timeout=300)
        process.join()


def label(one: Setting) -> str:
    """A setting in a few words."""
    parts = [one.shape.name.split("/")[1], f"{one.workers} x ZeRO-{one.stage}", f"{one.micro_batch} x {one.block}"]
    return ", ".join(
        [
            *parts,
            *(["recomputes"] if one.checkpointing else []),
            *(["liger"] if one.fused else []),
            *(["fused AdamW"] if one.fused_optimizer else []),
        ]
    )


def table(only: str, steps: int, gpu: str) -> None:
    """Settings with their predicted and measured figures."""
    print("| setting | after set-up, said / seen (GiB) | peak, said / seen (GiB) | off | s a step, said / seen | off |")
    print("| --- | --- | --- | --- | --- | --- |", flush=True)
    rows = [one for one in map(make, SETTINGS) if only in label(one)]
    for one, seen in zip(rows, each([(measure, (one, steps)) for one in rows]), strict=True):
        said, expected = memory.estimate(one), pace.estimate(one, pace.gpu(gpu)).step
        if isinstance(seen, str):
            print(f"| {label(one)} | | {gib(said.peak)} / none | | | | {seen[:200]}", flush=True)
            continue
        off = f"{100 * (said.peak / max(seen['peak'], 1) - 1):+.0f} %"
        seconds, wrong = "", ""
        if one.workers == 1:
            median = statistics.median(seen["seconds"][1:])
            seconds, wrong = f"{expected:.3f} / {median:.3f}", f"{100 * (expected / median - 1):+.0f} %"
        after, peak = f"{gib(said.after_setup)} / {gib(seen['after'])}", f"{gib(said.peak)} / {gib(seen['peak'])}"
        print(f"| {label(one)} | {after} | {peak} | {off} | {seconds} | {wrong} |", flush=True)


def gib(count: float) -> str:
    """`1.5` for bytes."""
    return f"{count / 2**30:.1f}"


PROFILED = [(GEMMA4, 1, 3, 2048, 8, False, True, True)]
LIMITED = [("L40S", 16, True), ("L40S", 3, False), ("L40S", 8, False), ("A100-40G", 8, True)]
AHEAD, LONGEST, LOSSES = 4, 14, 50
KINDS = {
    "attention": r"fmha|flash|attention|cutlass[FB]|sdpa",
    "matrix products": r"gemm|nvjet|cutlass|cublas",
    "loss": r"cross_entropy|softmax|nll",
    "optimizer": r"multi_tensor|[Aa]dam|foreach",
    "norms, gate, rotation": r"rms_norm|geglu|swiglu|rope",
    "elementwise, copies": r"elementwise|[Cc]opy|Memcpy|Memset|CatArray|index|where|tril|reduce",
}


def profile(row: tuple[Any, ...]) -> str:
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

    seen = measure(one, 5, look=look)
    sums: dict[str, float] = {}
    rows = []
    for event in trace.key_averages():
        spent = event.self_device_time_total / 1e6
        kind = next((kind for kind, pattern in KINDS.items() if re.search(pattern, event.key)), "other")
        sums[kind] = sums.get(kind, 0.0) + spent
        rows.append((spent, event.count, kind, event.key))
    rate = one.tokens / seen["seconds"][2]
    kernels = sum(sums.values())
    lines = [
        f"{label(one)}: step {seen['seconds'][2]:.3f} s, {rate:,.0f} tokens/s, kernels {kernels:.3f} s, "
        f"peak {gib(seen['peak'])} GiB, loss {seen['losses'][-1]:.3f}"
    ]
    lines += [f"  {spent:.3f} s  {kind}" for kind, spent in sorted(sums.items(), key=lambda item: -item[1])]
    longest = sorted(rows, reverse=True)[:LONGEST]
    return "\n".join([*lines, *(f"    {spent:.4f} s {count:5}  {name[:100]}" for spent, count, _, name in longest)])


def text_blocks(one: Setting, number: int, *, turned: bool) -> torch.Tensor:
    """A micro-batch of the demo's corpus, a token a byte; `turned` has its rows the other way round, which changes
    nothing but the order of sums.
    """
    lines = (ROOT / "dataset-configs" / "moby_dick.jsonl").read_text().splitlines()
    whole = torch.frombuffer(
        bytearray("\n".join(json.loads(line)["text"] for line in lines).encode()), dtype=torch.uint8
    )
    count = one.tokens
    start = (number * count) % (whole.numel() - count)
    rows = whole[start : start + count].long().view(one.micro_batch, one.block) + 5
    return rows.flip(0) if turned else rows


def same_losses() -> None:
    """Two recipes from the same weights on the same text, and what reordering sums alone does to the first."""
    guide = make((GEMMA1, 1, 3, 512, 4, True, False))
    fast = make((GEMMA1, 1, 2, 512, 4, False, True, True))
    wanted = ((guide, False), (guide, True), (fast, False))
    found = list(
        each([(measure, (one, LOSSES, 3e-5, partial(text_blocks, one, turned=turned))) for one, turned in wanted])
    )
    if any(isinstance(one, str) for one in found):
        print("losses:", found)
        return
    base, noise, ours = (one["losses"] for one in found)
    print("losses: step | ZeRO-3, recomputes | the same, rows turned | ZeRO-2, liger, fused AdamW")
    for step in range(9, LOSSES, 10):
        print(f"  {step + 1} | {base[step]:.4f} | {noise[step]:.4f} | {ours[step]:.4f}")
    for name, other in (("reordering", noise), ("the fast recipe", ours)):
        apart = [abs(a - b) for a, b in zip(base, other, strict=True)]
        print(f"  {name}: mean difference {statistics.mean(apart):.4f}, largest {max(apart):.4f}", flush=True)


def limited(gpu: str, row: tuple[Any, ...]) -> str:
    """A recipe in a process that may allocate what a card has, its context taken off."""
    one = make(row)
    card = pace.gpu(gpu)
    whole = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction((card.memory - memory.CONTEXT) / whole)
    said = "fits" if memory.estimate(one).needed <= card.memory else "does not fit"
    try:
        return f"{gpu}: {label(one)}: said {said}; ran, peak {gib(measure(one, 3)['peak'])} GiB"
    except torch.OutOfMemoryError:
        return f"{gpu}: {label(one)}: said {said}; out of memory"


def greet() -> str:
    """The card and its ceiling."""
    return f"{torch.cuda.get_device_name()}, torch {torch.__version__}, bf16 products {ceiling() / 1e12:.0f} TFLOP/s"


def main() -> None:
    """Run what is asked for."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", default="")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--gpu", default="H200")
    parser.add_argument("--losses", action="store_true")
    parser.add_argument("--limit", action="store_true")
    parser.add_argument("--profile", action="store_true")
    asked = parser.parse_args()
    jobs: list[tuple[Callable[..., Any], tuple[Any, ...]]] = [(greet, ())] if CUDA else []
    if asked.profile:
        jobs += [(profile, (row,)) for row in PROFILED]
    if asked.limit:
        jobs += [(limited, (gpu, (GEMMA4, 4, 2, 2048, batch, again, True, True))) for gpu, batch, again in LIMITED]
    for said in each(jobs):
        print(said, flush=True)
    if asked.losses:
        same_losses()
    if asked.only != "none":
        table(asked.only, asked.steps, asked.gpu)


if __name__ == "__main__":
    main()
