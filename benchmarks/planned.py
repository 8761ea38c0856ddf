"""What `cpt plan` says against what is measured: memory and time of many settings, on one GPU.

`python benchmarks/planned.py [--only TEXT] [--steps 4]`: for each setting a random model of the shape, transformers'
model code, liger's kernels where asked for, and `deepspeed.initialize` with the shipped JSON, `auto` filled in as
transformers does (integrations/deepspeed.py). Several workers are rank 0 of a process group whose collectives do
nothing (`torch.testing`'s fake one): what a rank allocates is real then; its time and its losses are not, and are not
shown. `--limit`: recipes for smaller cards, in a process that may allocate no more than such a card has. `--only none`:
no table.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import logging
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from gpu import DEVICE, ceiling, kernels, random_model

from cpt_launcher.plan import memory, pace, shape
from cpt_launcher.plan.memory import Setting

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


def config(one: Setting, zero_more: dict[str, Any]) -> dict[str, Any]:
    """The shipped DeepSpeed JSON, `auto` filled in, and more for `zero_optimization`."""
    value: dict[str, Any] = json.loads((ROOT / "deepspeed-configs" / f"ds_z{one.stage}_config.json").read_text())
    zero = value["zero_optimization"]
    auto = memory.auto_buckets(one.shape)
    zero |= {key: auto[key] for key in zero if zero[key] == "auto"}
    zero |= zero_more
    fixed = {
        "train_batch_size": one.micro_batch * one.workers, "train_micro_batch_size_per_gpu": one.micro_batch,
        "gradient_accumulation_steps": 1, "gradient_clipping": 1.0,
        "bf16": {"enabled": True}, "fp16": {"enabled": False},
    }  # fmt: skip
    return {**value, **fixed, "steps_per_print": 10**9}


def build(one: Setting, attention: str) -> torch.nn.Module:
    """A random model of the shape in bf16, as LLaMA-Factory prepares one."""
    if one.fused:
        kernels(one.shape.kind)
    model: Any = random_model(one.shape.name, attn_implementation=attention)
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
    attention: str = "sdpa",
    zero: dict[str, Any] = {},  # noqa: B006 - read only
    *,
    compiled: bool = False,
) -> dict[str, Any]:
    """Peak bytes, seconds a step, and losses; `compiled` as accelerate does with `torch_compile: true`."""
    import deepspeed

    process_group(one.workers)
    model = build(one, attention)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [parameter for parameter in trained if parameter.ndim > 1], "weight_decay": 0.0},
        {"params": [parameter for parameter in trained if parameter.ndim == 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=rate, fused=one.fused_optimizer or None)
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config(one, zero))
    if compiled:
        engine.compile(backend="inductor")
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


Job = tuple[Callable[..., Any], tuple[Any, ...]]


def each(jobs: Sequence[Job], envs: list[dict[str, str]] | None = None) -> Iterator[Any]:
    """The result of each job, one after the other; the next ones import meanwhile. `envs`: variables for each."""
    spawn = multiprocessing.get_context("spawn")
    started: list[tuple[Any, Any, Any]] = []
    for number in range(len(jobs)):
        for job, arguments in jobs[len(started) : number + AHEAD]:
            go, out = spawn.Event(), spawn.Queue()
            process = spawn.Process(target=child, args=(job, arguments, go, out))
            before = dict(os.environ)
            os.environ |= (envs or [{}] * len(jobs))[len(started)]
            process.start()
            os.environ.clear()
            os.environ |= before
            started.append((process, go, out))
        process, go, out = started[number]
        go.set()
        yield out.get(timeout=300)
        process.join()


def label(one: Setting) -> str:
    """A setting in a few words."""
    parts = [one.shape.name.split("/")[1], f"{one.workers} x ZeRO-{one.stage}", f"{one.micro_batch} x {one.block}"]
    return ", ".join(
        parts + ["recomputes"] * one.checkpointing + ["liger"] * one.fused + ["fused AdamW"] * one.fused_optimizer
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


LIMITED = [("L40S", 16, True), ("L40S", 3, False), ("L40S", 8, False), ("A100-40G", 8, True)]
AHEAD = 4


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
    parser.add_argument("--limit", action="store_true")
    asked = parser.parse_args()
    jobs: list[Job] = [(greet, ())] if CUDA else []
    if asked.limit:
        jobs += [(limited, (gpu, (GEMMA4, 4, 2, 2048, batch, again, True, True))) for gpu, batch, again in LIMITED]
    for said in each(jobs):
        print(said, flush=True)
    if asked.only != "none":
        table(asked.only, asked.steps, asked.gpu)


if __name__ == "__main__":
    main()
