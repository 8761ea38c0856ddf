"""What a run will take, from its plan: memory, storage, steps, time and price, on each card that is known."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from cpt_launcher.errors import ConfigError, Problem
from cpt_launcher.plan import amount, footprint, memory, pace, shape
from cpt_launcher.plan.memory import Memory, Precision, Setting
from cpt_launcher.plan.pace import Pace
from cpt_launcher.plan.plan import Plan, number

MOST = 512  # micro-batches tried
IDLE = 0.1  # of a card's rate; below it a run is worth a word
_PRECISIONS: tuple[Precision, ...] = ("bf16", "fp16", "pure_bf16")  # what is on first, else 32 bits
# DeepSpeed's own defaults (runtime/zero/config.py) where the JSON says nothing.
_ZERO = {
    "reduce_bucket_size": 5e8,
    "stage3_prefetch_bucket_size": 5e7,
    "stage3_max_live_parameters": 1e9,
    "sub_group_size": 1e9,
}


@dataclass(frozen=True)
class Times:
    """Seconds of a whole run, by part: until the first step, the steps, evaluations, and writing to the storage."""

    start: float
    steps: float
    evaluations: float
    saves: float

    @property
    def all(self) -> float:
        return self.start + self.steps + self.evaluations + self.saves


@dataclass(frozen=True)
class OnCard:
    """A card, whether the run fits it, the largest micro-batch that does (0: none), and the pace there, None where
    there are no measurements (offloading, 32 bits). `times`, `seconds` and `price` of the whole run, None where pace,
    steps, tokens held out or rate are not known; the price is in the currency of the rate.
    """

    card: str
    fits: bool
    largest: int
    pace: Pace | None
    times: Times | None
    seconds: float | None
    price: float | None

    @property
    def mfu(self) -> float | None:
        """Model FLOPs utilisation: six operations per trained parameter and token, of the card's dense bf16 rate."""
        return self.pace.useful / pace.gpu(self.card).rate if self.pace else None


@dataclass(frozen=True)
class Sizing:
    """All that `cpt plan` says. `tokens` that are trained on in an epoch and those `held_out`, `steps` of the run, and
    how often it evaluates and saves; None where they are not known. Storage in bytes, `checkpoints` those that are
    there at once. No `cards` for CPU workers.
    """

    setting: Setting
    device: str
    memory: Memory
    tokens: int | None
    held_out: int | None
    steps: int | None
    evaluations: int | None
    saves: int | None
    checkpoint: int
    checkpoints: int | None
    model: int
    cards: tuple[OnCard, ...]


def size(plan: Plan, environ: Mapping[str, str], *, tokens: int | None = None, rate: float | None = None) -> Sizing:
    """Size a run. `tokens` of the corpus, instead of an estimate; `rate` for a GPU and an hour.

    Raises:
        ConfigError: the model's shape is not known, or there is no such DeepSpeed file.
    """
    setting = setting_of(plan, environ)
    found = amount.of(plan, tokens)
    steps = _steps(plan.train, setting, found.trained)
    train = {**plan.train, "max_steps": steps} if steps else plan.train
    each, model = footprint.bytes_of(setting.shape.loaded, setting.shape.trained, train)
    alone = Sizing(
        setting=setting,
        device=plan.device,
        memory=memory.estimate(setting),
        tokens=found.trained,
        held_out=found.held_out,
        steps=steps,
        evaluations=_evaluations(train) if setting.evaluated else 0,
        saves=footprint.count_saves(train),
        checkpoint=each,
        checkpoints=footprint.kept(train, plan.keep),
        model=model,
        cards=(),
    )
    return alone if plan.device == "cpu" else replace(alone, cards=tuple(_on(n, alone, rate) for n in pace.gpus()))


def warnings(plan: Plan, environ: Mapping[str, str], card: str) -> list[str]:
    """A word where the run is not expected to fit the card, or will leave it idle; none where nobody knows."""
    name = next((name for name in pace.gpus() if name.replace("-", " ") in card.replace("-", " ").upper()), None)
    if name is None or plan.device == "cpu":
        return []
    try:
        one = setting_of(plan, environ)
    except ConfigError:
        return []
    known, largest = pace.gpu(name), _largest(one, pace.gpu(name).memory)
    needed = memory.estimate(one).needed
    if needed > known.memory:
        need, have = needed / 1e9, known.memory / 1e9
        most = f"the largest micro-batch that fits is {largest}" if largest else "no micro-batch fits"
        return [
            f"each GPU will need about {need:.0f} GB and a {name} has {have:.0f}: {most} (`cpt plan` has the parts)"
        ]
    on = _pace(one, known)
    if on is not None and on.useful / known.rate < IDLE and largest >= 2 * one.micro_batch:
        used = on.useful / known.rate
        what = f"each {name} will compute at about {used:.0%} of its rate: a micro-batch is {one.tokens:,} tokens"
        more = f"train.per_device_train_batch_size={largest} fits"
        return [f"{what}, and {more} (`cpt plan` has the figures)"]
    return []


def setting_of(plan: Plan, environ: Mapping[str, str]) -> Setting:
    """What memory and time depend on, from the rendered arguments, the DeepSpeed file and the model's shape.

    Raises:
        ConfigError: the model's shape is not known, or there is no such DeepSpeed file.
    """
    home = Path(environ.get("HF_HOME") or Path(environ.get("HOME", "/root")) / ".cache" / "huggingface")
    kind = shape.find(plan.model, Path(environ.get("HF_HUB_CACHE") or home / "hub"))
    return _setting(kind, plan.train, plan, _deepspeed(plan, plan.train))


def _setting(kind: shape.Shape, train: Mapping[str, object], plan: Plan, zero: Mapping[str, object]) -> Setting:
    auto = memory.auto_buckets(kind)

    def elements(key: str) -> int:
        value = zero.get(key, _ZERO[key])
        return int(value) if isinstance(value, int | float) else auto.get(key, int(_ZERO[key]))

    def offloaded(key: str) -> bool:
        part = zero.get(key)
        return isinstance(part, dict) and part.get("device", "none") != "none"

    stage = zero.get("stage", 0)
    return Setting(
        shape=kind,
        workers=plan.workers,
        stage=stage if isinstance(stage, int) else 0,
        block=max(1, number(train, "cutoff_len")),
        micro_batch=max(1, number(train, "per_device_train_batch_size")),
        accumulation=max(1, number(train, "gradient_accumulation_steps")),
        checkpointing=not train.get("disable_gradient_checkpointing", False),
        fused=bool(train.get("enable_liger_kernel", False)),
        fused_optimizer=train.get("optim") == "adamw_torch_fused",
        offload_optimizer=offloaded("offload_optimizer"),
        offload_parameters=offloaded("offload_param"),
        overlap=bool(zero.get("overlap_comm", stage == 3)),
        reduce_bucket=elements("reduce_bucket_size"),
        prefetch_bucket=elements("stage3_prefetch_bucket_size"),
        live=elements("stage3_max_live_parameters"),
        sub_group=elements("sub_group_size"),
        precision=next((name for name in _PRECISIONS if train.get(name)), "fp32"),
        deepspeed=bool(train.get("deepspeed")),
        evaluated=max(1, number(train, "per_device_eval_batch_size")) if _evaluates(train) else 0,
    )


def _deepspeed(plan: Plan, train: Mapping[str, object]) -> Mapping[str, object]:
    """`zero_optimization` of the file that the run will use, staged or not; empty without DeepSpeed."""
    given = train.get("deepspeed")
    if isinstance(given, dict):
        values = given
    elif isinstance(given, str):
        path = next((copy.source for copy in plan.copies if copy.place == given), given)
        try:
            values = json.loads(Path(path).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            what = f"not a readable DeepSpeed file: {error}"
            hint = "check the path; cpt stage-data puts it on the storage"
            raise ConfigError(Problem(what, path, hint, "ds-json")) from None
    else:
        values = {}
    zero = values.get("zero_optimization", {}) if isinstance(values, dict) else {}
    return zero if isinstance(zero, dict) else {}


def _steps(train: Mapping[str, object], setting: Setting, tokens: int | None) -> int | None:
    """`max_steps`, or the epochs' blocks cut into steps (transformers, `Trainer.set_initial_training_values`)."""
    most, epochs = train.get("max_steps"), train.get("num_train_epochs", 3.0)
    if isinstance(most, int) and most > 0:
        return most
    if tokens is None or not isinstance(epochs, int | float):
        return None
    batches = math.ceil(tokens // setting.block / (setting.micro_batch * setting.workers))
    return max(1, math.ceil(max(1, batches // setting.accumulation) * epochs))


def _evaluates(train: Mapping[str, object]) -> bool:
    return bool(train.get("do_eval") or train.get("eval_strategy", "no") != "no") and bool(
        train.get("eval_dataset") or train.get("val_size")
    )


def _evaluations(train: Mapping[str, object]) -> int | None:
    """The base model's, those between steps, and the one after the training (LLaMA-Factory, train/pt/workflow.py),
    which is left out where the last step was evaluated (see `stack.worker`).
    """
    strategy, steps = train.get("eval_strategy", "no"), train.get("max_steps")
    between: int | None = 0
    last = strategy == "epoch"
    if strategy == "epoch":
        epochs = train.get("num_train_epochs", 3.0)
        between = math.ceil(epochs) if isinstance(epochs, int | float) else None
    elif strategy == "steps":
        name = "eval_steps" if train.get("eval_steps") is not None else "logging_steps"
        every = footprint.interval(train, name)
        between = int(int(str(steps)) // every) if every else None
        last = every is not None and int(str(steps)) % every == 0
    return None if between is None else between + bool(train.get("eval_on_start")) + (not last)


def _on(name: str, found: Sizing, rate: float | None) -> OnCard:
    setting, card = found.setting, pace.gpu(name)
    expected = _pace(setting, card)
    times = _times(found, card, expected) if expected else None
    seconds = times.all if times else None
    price = seconds / 3600 * setting.workers * rate if seconds is not None and rate is not None else None
    fits = found.memory.needed <= card.memory
    return OnCard(name, fits, _largest(setting, card.memory), expected, times, seconds, price)


def _pace(setting: Setting, card: pace.Gpu) -> Pace | None:
    """None where there are no measurements to go by."""
    offloads = setting.offload_optimizer or setting.offload_parameters
    return None if offloads or setting.precision == "fp32" else pace.estimate(setting, card)


def _times(found: Sizing, card: pace.Gpu, expected: Pace) -> Times | None:
    if found.steps is None or found.saves is None or (found.evaluations and not found.held_out):
        return None
    evaluations = 0.0
    if found.evaluations and found.held_out:
        evaluations = found.evaluations * pace.evaluation(found.setting, card, found.held_out)
    written = found.saves * found.checkpoint + found.model
    return Times(pace.START, found.steps * expected.step, evaluations, written / pace.SAVE_RATE)


def _largest(setting: Setting, room: float) -> int:
    def fits(batch: int) -> bool:
        as_one = setting.evaluated == setting.micro_batch
        tried = replace(setting, micro_batch=batch, evaluated=batch if as_one else setting.evaluated)
        return memory.estimate(tried).needed <= room

    low, high = 0, MOST
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low
