"""The command that says what a run will take before anything is rented."""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from cpt_launcher.cli import check, show
from cpt_launcher.config import read
from cpt_launcher.errors import ConfigError, Problem
from cpt_launcher.plan import memory, pace, sizing
from cpt_launcher.plan import plan as plans
from cpt_launcher.plan.sizing import MOST, OnCard, Sizing
from cpt_launcher.runs.events import duration
from cpt_launcher.runs.events import size as shown


def plan(
    config: Annotated[Path, typer.Argument(help="A launcher config, or a LLaMA-Factory training YAML.")],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Overrides.")] = None,
    gpu: Annotated[str | None, typer.Option(help=f"Only this card: {', '.join(pace.gpus())}.")] = None,
    rate: Annotated[float | None, typer.Option(min=0, help="The price of one GPU for an hour.")] = None,
    tokens: Annotated[int | None, typer.Option(min=1, help="Tokens of the corpus, instead of an estimate.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Estimate memory, cards that fit, time and price of a run.

    For CPU workers: memory and storage.
    """
    gpu = gpu and next((name for name in pace.gpus() if name.upper() == gpu.upper()), gpu)
    if gpu is not None and gpu not in pace.gpus():
        raise ConfigError(Problem(f"there are no figures for a '{gpu}'", "--gpu", f"one of {', '.join(pace.gpus())}"))
    check.refuse_mistakes(config, overrides or [])
    planned = plans.plan_run(read.read(config, overrides or []), os.environ)
    found = sizing.size(planned, os.environ, tokens=tokens, rate=rate)
    cards = [card for card in found.cards if gpu in (None, card.card)]
    if as_json:
        rows = [{**asdict(card), "mfu": card.mfu} for card in cards]
        show.as_json({**asdict(found), "cards": rows})
        return
    if found.device == "cpu" and (gpu is not None or rate is not None):
        show.note("--gpu and --rate are for GPU workers; this run has CPU workers")
    memory_of = _host_memory if found.device == "cpu" else _gpu_memory
    show.answer("\n".join([*_what(planned.layout.run, found), "", *memory_of(found)]))
    if cards:
        columns = len(HEAD) if rate is not None else len(HEAD) - 1
        show.answer("")
        show.table([row[:columns] for row in (HEAD, *(_row(card) for card in cards))])
        show.answer("\n".join(_notes(found, cards, rate)))


HEAD = ("CARD", "FITS", "LARGEST MICRO-BATCH", "SECONDS A STEP", "TOKENS/S PER GPU", "MFU", "TIME", "PRICE")


def _row(found: OnCard) -> tuple[str, ...]:
    if not found.fits:
        return (found.card, "no", str(found.largest or "none"), "-", "-", "-", "-", "-")
    time = duration(found.seconds) if found.seconds is not None else "?"
    price = f"{found.price:,.2f}" if found.price is not None else "?"
    step, rate = (f"{found.pace.step:.2f}", f"{found.pace.rate:,.0f}") if found.pace else ("?", "?")
    largest = str(found.largest) if found.largest < MOST else f"{MOST} or more"
    mfu = f"{found.mfu:.0%}" if found.mfu is not None else "?"
    return (found.card, "yes", largest, step, rate, mfu, time, price)


PRECISIONS = {
    "bf16": "bf16 with 32-bit optimizer states", "fp16": "fp16 with 32-bit optimizer states",
    "fp32": "32 bits throughout (neither bf16 nor fp16)", "pure_bf16": "pure bf16",
}  # fmt: skip


def _what(run: str, found: Sizing) -> list[str]:
    """The model, the recipe, the corpus and the storage."""
    one, kind = found.setting, found.setting.shape
    trained = f"{kind.trained:,} parameters" + (f" trained of {kind.loaded:,}" if kind.not_trained else "")
    by = (f"ZeRO-{one.stage}" if one.stage else "DeepSpeed without ZeRO") if one.deepspeed else "no DeepSpeed"
    how = [by, PRECISIONS[one.precision], *["liger kernels"] * one.fused]
    how.append("activations are recomputed" if one.checkpointing else "all activations are kept")
    workers = f"{one.workers} on {'GPUs' if found.device == 'gpu' else 'CPUs'}"
    gathered = f" x {one.accumulation} micro-batches" if one.accumulation > 1 else ""
    step = f"{one.workers} x {one.micro_batch} x {one.block:,} tokens{gathered} = {one.tokens_per_step:,} tokens"
    corpus = f"about {found.tokens:,} tokens to train on" if found.tokens else "not known"
    corpus += f", {found.held_out:,} held out" if found.held_out else ""
    steps = f"{found.steps:,}" if found.steps else "not known; stage the data or give --tokens N"
    if found.steps and found.tokens:
        seen = found.steps * one.tokens_per_step
        steps += f" = {seen:,} tokens, about {seen / found.tokens:.2f} epochs"
    storage = f"{shown(found.checkpoint)} a checkpoint, {shown(found.model)} the final model"
    if found.checkpoints is not None:
        most = shown(found.checkpoints * found.checkpoint + found.model)
        storage += f"; at most {found.checkpoints} at once, {most} in all"
    return [
        f"{run}: {kind.name}, {trained}",
        f"workers  {workers}: {', '.join(how)}",
        f"a step   {step}",
        f"corpus   {corpus}",
        f"steps    {steps}",
        f"storage  {storage}",
    ]


def _gpu_memory(found: Sizing) -> list[str]:
    parts, of_host = found.memory, found.memory.host
    return [
        "Memory of each GPU:",
        *_parts(found),
        _line("needed on the card", parts.needed, "with CUDA's own, and what fragmentation costs"),
        _line("after the optimizer's set-up", parts.after_setup, "before the first step"),
        *([f"Host memory for offloading, of all workers together: {of_host / 1e9:,.0f} GB"] if of_host else []),
    ]


def _host_memory(found: Sizing) -> list[str]:
    """A worker's process, and what stands beside the workers."""
    parts, count = found.memory, found.setting.workers
    whole = count * parts.resident + memory.OTHERS
    return [
        "Memory of each worker:",
        *_parts(found),
        _line("Python and its libraries", memory.LIBRARIES),
        _line("the worker's process", parts.resident),
        f"All workers on one machine need about {shown(whole)}, with Ray and the launcher.",
        "Time on CPUs is not estimated: it differs too much from one processor to the next.",
    ]


def _parts(found: Sizing) -> list[str]:
    """What is held throughout, and the three moments of which the largest comes on top."""
    parts = found.memory
    passes = {"activations": parts.activations, "logits and loss": parts.logits}
    passes["buffers, gathered weights"] = parts.buckets
    if not parts.gradients_late:
        passes = {"gradients": parts.gradients, **passes}
    moments = {
        "forward and backward": passes,
        "the optimizer's step": {"gradients": parts.gradients, "copies, temporaries": parts.step},
        "an evaluation": {"logits, a layer": parts.evaluation},
    }
    lines = [_line("weights", parts.weights), _line("optimizer states", parts.optimizer), "  and the largest of these:"]
    for moment, inner in moments.items():
        if sum(inner.values()):
            lines.append(_line(f"  {moment}", sum(inner.values())))
        if len(inner) > 1:
            lines += [_line(f"    {name}", size) for name, size in inner.items() if size]
    return [*lines, _line("peak", parts.peak)]


def _line(name: str, size: float, more: str = "") -> str:
    return f"  {name:31} {shown(size):>9}  {more}".rstrip()


def _notes(found: Sizing, cards: list[OnCard], rate: float | None) -> list[str]:
    """What time and price consist of, and why there is none."""
    if all(card.pace is None for card in cards):
        why = "32-bit training" if found.setting.precision == "fp32" else "offloading"
        return [f"?: {why} was not measured, so its time is not estimated."]
    if all(card.times is None for card in cards):
        what = "steps" if found.steps is None else "held-out tokens"
        return [f"?: the number of {what} is not known; stage the data or give --tokens N."]
    times = next((card.times for card in cards if card.fits and card.times), None)
    if times is None:
        return []
    evaluations, saves = _counted(found.evaluations, "evaluation"), _counted(found.saves, "save")
    parts = {
        "the start": times.start,
        _counted(found.steps, "step"): times.steps,
        evaluations: times.evaluations,
        f"{saves} and the final model at {shown(pace.SAVE_RATE)}/s": times.saves,
    }
    alone = len(cards) == 1
    said = [f"{name} ({duration(part)})" if alone else name for name, part in parts.items() if part]
    notes = [
        f"TIME: {', '.join(said)}.",
        "It leaves out staging, downloading the model, tokenizing a large corpus, and waiting for machines.",
    ]
    if rate is not None:
        many = _counted(found.setting.workers, "GPU")
        notes.append(f"PRICE: TIME on {many} at {rate:g} a GPU hour, in that rate's currency.")
    return notes


def _counted(count: int | None, noun: str) -> str:
    return f"{count or 0:,} {noun}{'' if count == 1 else 's'}"


def register(app: typer.Typer) -> None:
    """Add this command to the command line."""
    app.command(epilog="Example: cpt plan configs/gemma3_4b.yaml --gpu L40S --rate 1.80")(plan)
