"""Rules on a DeepSpeed JSON, alone and against the arguments it is used with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from cpt_launcher.config import arguments
from cpt_launcher.config.arguments import load
from cpt_launcher.config.document import Document
from cpt_launcher.config.suggest import unknown
from cpt_launcher.errors import Problem
from cpt_launcher.validate.arguments import Arguments
from cpt_launcher.validate.report import Finding, Severity, of


def check(document: Document) -> Iterator[Finding]:
    """What can be said of the file alone."""
    values = document.value
    if not isinstance(values, dict) or not arguments.is_deepspeed(values):
        yield _finding(document, "error", "ds-json", "not a DeepSpeed configuration", "it has zero_optimization")
        return
    for key, hint in unknown(values, load().deepspeed):
        yield _finding(document, "warning", "ds-key", f"DeepSpeed ignores '{key}'", hint, key)
    if not {"train_batch_size", "train_micro_batch_size_per_gpu"} & set(values):
        hint = 'add "train_batch_size": "auto" and "train_micro_batch_size_per_gpu": "auto"'
        yield _finding(document, "error", "ds-batch", "no batch size, not even 'auto'", hint)
    if "scheduler" in values:
        what = "the scheduler here overrules lr_scheduler_type of the YAML"
        yield _finding(document, "warning", "ds-scheduler", what, "remove it", "scheduler")
    zero = values.get("zero_optimization")
    if isinstance(zero, dict):
        yield from _zero(document, zero)


def _zero(document: Document, zero: Mapping[str, object]) -> Iterator[Finding]:
    at, known = "zero_optimization", load().zero_optimization
    for key, hint in unknown(zero, known):
        yield _finding(document, "warning", "ds-key", f"ZeRO ignores '{key}'", hint, at, key)
    stage = zero.get("stage", 0)
    if isinstance(stage, bool) or stage not in (0, 1, 2, 3):
        yield _finding(document, "error", "wrong-value", f"there is no ZeRO stage {stage!r}", "0 to 3", at, "stage")
        return
    if stage == 3 and zero.get("stage3_gather_16bit_weights_on_model_save") is not True:
        hint = '"stage3_gather_16bit_weights_on_model_save": true'
        what = "checkpoints and the final model will have no model.safetensors"
        yield _finding(document, "warning", "ds-gather", what, hint, at)
    for part, lowest in (("offload_param", 3), ("offload_optimizer", 1)):
        offload = zero.get(part)
        if isinstance(offload, dict) and offload.get("device", "none") != "none" and int(str(stage)) < lowest:
            what = f"{part} needs ZeRO stage {lowest}, and this is {stage}"
            yield _finding(document, "error", "ds-offload", what, f"stage {lowest}, or remove it", at, part)


def check_together(document: Document, args: Arguments) -> Iterator[Finding]:
    """The file against the arguments: transformers refuses what differs (integrations/deepspeed.py, fill_match)."""
    values = document.value if isinstance(document.value, dict) else {}
    micro, steps = args.number("per_device_train_batch_size"), args.number("gradient_accumulation_steps")
    workers = args.number("ray_num_workers")
    expected = {
        "train_micro_batch_size_per_gpu": micro,
        "gradient_accumulation_steps": steps,
        "train_batch_size": micro * steps * workers if micro and steps and workers else None,
    }
    for key, wanted in expected.items():
        if (found := _number(values.get(key))) is not None and wanted and found != wanted:
            what = f"{key} is {found:g}, and the YAML makes it {wanted:g}"
            yield _finding(document, "error", "ds-batch", what, f'"{key}": "auto"', key)
    pairs = (
        (("gradient_clipping",), args.number("max_grad_norm")),
        (("optimizer", "params", "lr"), args.number("learning_rate")),
        (("optimizer", "params", "weight_decay"), args.number("weight_decay")),
        (("bf16", "enabled"), _flag(args.get("bf16"))),
        (("fp16", "enabled"), _flag(args.get("fp16"))),
    )
    for path, wanted in pairs:
        found = _number(_at(values, path))
        if found is not None and wanted is not None and found != wanted:
            what = f"{'.'.join(path)} is {_at(values, path)}, and the YAML says otherwise"
            yield _finding(document, "error", "ds-mismatch", what, '"auto"', *path)


def _at(values: object, path: tuple[str, ...]) -> object:
    for key in path:
        values = values.get(key) if isinstance(values, dict) else None
    return values


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) else None


def _flag(value: object) -> float | None:
    return float(value) if isinstance(value, bool) else None


def _finding(document: Document, severity: Severity, rule: str, what: str, hint: str = "", *key: str) -> Finding:
    return of(Problem(what, document.where(*key), hint, rule), severity)
