"""What a run will take, from its plan: memory, storage, steps, time and price, on each card that is known."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from cpt_launcher import footprint, manifest, memory, pace, shape
from cpt_launcher.errors import ConfigError, Problem
from cpt_launcher.memory import Memory, Setting
from cpt_launcher.pace import Pace
from cpt_launcher.plan import Plan, number
from cpt_launcher.records import estimated_tokens

MOST = 512  # micro-batches tried
IDLE = 0.1  # of a card's rate; below it a run is worth a word
# DeepSpeed's own defaults (runtime/zero/config.py) where the JSON says nothing.
_ZERO = {
    "reduce_bucket_size": 5e8,
    "stage3_prefetch_bucket_size": 5e7,
    "stage3_max_live_parameters": 1e9,
    "sub_group_size": 1e9,
}


@dataclass(frozen=True)
class OnCard:
    """A card, whether the run fits it, the largest micro-batch that does (0: none), and the pace there, None with
    offloading, for which there are no measurements. `seconds` and `price` of the whole run, None where pace, steps or
    rate are not known.
    """

    card: str
    fits: bool
    largest: int
    pace: Pace | None
    seconds: float | None
    price: float | None

    @property
    def mfu(self) -> float | None:
        """Model FLOPs utilisation: six operations per trained parameter and token, of the card's dense bf16 rate."""
        return self.pace.useful / pace.gpu(self.card).rate if self.pace else None


@dataclass(frozen=True)
class Sizing:
    """All that `cpt plan` says. `tokens` of the corpus, `steps` of the run; None where they are not known. Storage in
    bytes.
    """

    setting: Setting
    memory: Memory
    tokens: int | None
    steps: int | None
    checkpoint: int
    checkpoints: int | None
    model: int
    cards: tuple[OnCard, ...]


def size(plan: Plan, environ: Mapping[str, str], *, tokens: int | None = None, rate: float | None = None) -> Sizing:
    """Size a run. `tokens` of the corpus, instead of an estimate; `rate` for a GPU and an hour.

    Raises:
        ConfigError: the model's shape is not known, or there is no such DeepSpeed file.
    """
    train = plan.train
    home = Path(environ.get("HF_HOME") or Path(environ.get("HOME", "/root")) / ".cache" / "huggingface")
    kind = shape.find(plan.model, Path(environ.get("HF_HUB_CACHE") or home / "hub"))
    setting = _setting(kind, train, plan, _deepspeed(plan, train))
    tokens = tokens if tokens is not None else _tokens(plan, train)
    steps = _steps(train, setting, tokens)
    each, model = footprint.bytes_of(kind.loaded, kind.trained, train)
    return Sizing(
        setting=setting,
        memory=memory.estimate(setting),
        tokens=tokens,
        steps=steps,
        checkpoint=each,
        checkpoints=footprint.kept({**train, "max_steps": steps} if steps else train, plan.keep),
        model=model,
        cards=tuple(_on(name, setting, steps, rate) for name in pace.gpus()),
    )


def warnings(plan: Plan, environ: Mapping[str, str], card: str) -> list[str]:
    """A word where the run is not expected to fit the card, or will leave it idle; none where nobody knows."""
    name = next((name for name in pace.gpus() if name.replace("-", " ") in card.replace("-", " ").upper()), None)
    if name is None or plan.device == "cpu":
        return []
    try:
        found = size(plan, environ)
    except ConfigError:
        return []
    on, one = next(item for item in found.cards if item.card == name), found.setting
    if not on.fits:
        need, have = found.memory.needed / 1e9, pace.gpu(name).memory / 1e9
        most = f"the largest micro-batch that fits is {on.largest}" if on.largest else "no micro-batch fits"
        return [
            f"each GPU will need about {need:.0f} GB and a {name} has {have:.0f}: {most} (`cpt plan` has the parts)"
        ]
    if on.mfu is not None and on.mfu < IDLE and on.largest >= 2 * one.micro_batch:
        what = f"each {name} will compute at about {on.mfu:.0%} of its rate: a micro-batch is {one.tokens:,} tokens"
        more = f"train.per_device_train_batch_size={on.largest} fits"
        return [f"{what}, and {more} (`cpt plan` has the figures)"]
    return []


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


def _tokens(plan: Plan, train: Mapping[str, object]) -> int | None:
    """Of what was staged, else of what lies on this machine, by its size; None where neither is known."""
    known, total = manifest.read(plan.layout), 0.0
    data, most = [copy for copy in plan.copies if copy.column is not None], train.get("max_samples")
    for copy in data:
        record, source = known.get(copy.place.removeprefix(f"{plan.layout.storage}/")), Path(copy.source)
        if record is not None and record.text_bytes is not None:
            share = min(1.0, most / record.documents) if isinstance(most, int) and most and record.documents else 1.0
            total += share * estimated_tokens(record.text_bytes, record.documents or 0)
        elif source.is_file() and not isinstance(most, int):
            total += estimated_tokens(source.stat().st_size, 0)
        else:
            return None
    return int(total) if data else None


def _steps(train: Mapping[str, object], setting: Setting, tokens: int | None) -> int | None:
    """`max_steps`, or the epochs' blocks cut into steps (transformers, `Trainer.set_initial_training_values`)."""
    most, epochs = train.get("max_steps"), train.get("num_train_epochs", 3.0)
    if isinstance(most, int) and most > 0:
        return most
    if tokens is None or not isinstance(epochs, int | float):
        return None
    batches = math.ceil(tokens // setting.block / (setting.micro_batch * setting.workers))
    return max(1, math.ceil(max(1, batches // setting.accumulation) * epochs))


def _on(name: str, setting: Setting, steps: int | None, rate: float | None) -> OnCard:
    card = pace.gpu(name)
    offloads = setting.offload_optimizer or setting.offload_parameters
    expected = None if offloads else pace.estimate(setting, card)
    seconds = steps * expected.step if steps and expected else None
    price = seconds / 3600 * setting.workers * rate if seconds is not None and rate is not None else None
    fits = memory.estimate(setting).needed <= card.memory
    return OnCard(name, fits, _largest(setting, card.memory), expected, seconds, price)


def _largest(setting: Setting, room: float) -> int:
    def fits(batch: int) -> bool:
        return memory.estimate(replace(setting, micro_batch=batch)).needed <= room

    low, high = 0, MOST
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low
