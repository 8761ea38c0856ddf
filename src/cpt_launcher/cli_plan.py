"""The command that says what a run will take before anything is rented."""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from cpt_launcher import pace, progress, reader, sizing, terminal, validate
from cpt_launcher import plan as plans
from cpt_launcher.errors import ConfigError, Problem
from cpt_launcher.sizing import MOST, OnCard, Sizing


def plan(
    config: Annotated[Path, typer.Argument(help="A launcher config, or a LLaMA-Factory training YAML.")],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Overrides.")] = None,
    gpu: Annotated[str | None, typer.Option(help=f"Only this card: {', '.join(pace.gpus())}.")] = None,
    rate: Annotated[float | None, typer.Option(min=0, help="The price of a GPU for an hour.")] = None,
    tokens: Annotated[int | None, typer.Option(min=1, help="Tokens of the corpus, instead of an estimate.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Estimate memory, cards that fit, time and price of a run."""
    gpu = gpu and next((name for name in pace.gpus() if name.upper() == gpu.upper()), gpu)
    if gpu is not None and gpu not in pace.gpus():
        raise ConfigError(Problem(f"there are no figures for a '{gpu}'", "--gpu", f"one of {', '.join(pace.gpus())}"))
    validate.refuse(validate.validate([config], validate.Options(tuple(overrides or []))).findings)
    planned = plans.plan_run(reader.read(config, overrides or []), os.environ)
    found = sizing.size(planned, os.environ, tokens=tokens, rate=rate)
    cards = [card for card in found.cards if gpu in (None, card.card)]
    if as_json:
        rows = [{**asdict(card), "mfu": card.mfu} for card in cards]
        terminal.as_json({**asdict(found), "cards": rows})
        return
    terminal.answer("\n".join(_text(planned.layout.run, planned.device.upper(), found)))
    terminal.table([HEAD, *(_row(card) for card in cards)])


HEAD = ("CARD", "FITS", "LARGEST MICRO-BATCH", "S A STEP", "TOKENS/S PER GPU", "MFU", "TIME", "PRICE")


def _row(found: OnCard) -> tuple[str, ...]:
    if not found.fits:
        return (found.card, "no", str(found.largest or "none"), "-", "-", "-", "-", "-")
    time = progress.duration(found.seconds) if found.seconds is not None else "?"
    price = f"{found.price:,.2f}" if found.price is not None else "-"
    step, rate = (f"{found.pace.step:.2f}", f"{found.pace.rate:,.0f}") if found.pace else ("?", "?")
    largest = str(found.largest) if found.largest < MOST else f"{MOST} or more"
    mfu = f"{found.mfu:.0%}" if found.mfu is not None else "?"
    return (found.card, "yes", largest, step, rate, mfu, time, price)


def _text(run: str, device: str, found: Sizing) -> list[str]:
    one, parts = found.setting, found.memory
    kind = one.shape
    trained = f"{kind.trained:,} parameters" + (f" trained of {kind.loaded:,}" if kind.not_trained else "")
    how = [f"ZeRO-{one.stage}" if one.stage else "no DeepSpeed"]
    how += ["liger kernels"] * one.fused + ["recomputes activations" if one.checkpointing else "keeps all activations"]
    steps = f"{found.steps:,}" if found.steps else "not known: stage the data, or --tokens N"
    corpus = f"{found.tokens:,} tokens (about)" if found.tokens else "not known"
    size = progress.size
    storage = f"{size(found.checkpoint)} a checkpoint, {size(found.model)} the model"
    if found.checkpoints is not None:
        storage += f"; {found.checkpoints} at once, {size(found.checkpoints * found.checkpoint + found.model)} in all"
    rows = {
        "weights": parts.weights, "gradients": parts.gradients, "optimizer states": parts.optimizer,
        "activations": parts.activations, "logits and loss": parts.logits, "buckets, gathered weights": parts.buckets,
        "or, in the optimizer's step": parts.step, "peak": parts.peak, "a card must have": parts.needed,
        "after the optimizer's set-up": parts.after_setup,
    }  # fmt: skip
    return [
        f"{run}: {kind.name}, {trained}",
        f"{one.workers} {device} workers, {', '.join(how)}; each {one.micro_batch} x {one.block:,} tokens "
        f"x {one.accumulation}, {one.tokens_per_step:,} tokens a step",
        f"corpus {corpus}; steps {steps}",
        f"storage {storage}",
        "",
        "Memory of each worker:",
        *(f"  {name:28} {size(count):>9}" for name, count in rows.items()),
        *([f"Host memory for offloading: {parts.host / 1e9:,.0f} GB"] if parts.host else []),
        "",
    ]


def register(app: typer.Typer) -> None:
    """Add this command to the command line."""
    app.command(epilog="Example: cpt plan configs/gemma3_4b.yaml --gpu L40S --rate 1.80")(plan)
