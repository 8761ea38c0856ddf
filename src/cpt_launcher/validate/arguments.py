"""The arguments of a run, and the rules that the schema alone decides: names, types, choices, ranges."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from cpt_launcher.config.arguments import Argument, Schema
from cpt_launcher.config.suggest import near, unknown
from cpt_launcher.errors import Problem
from cpt_launcher.validate.report import Finding, Severity, of

# Smallest and largest value; an open end excludes itself.
RANGES: dict[str, str] = {
    "per_device_train_batch_size": "[1, inf)",
    "per_device_eval_batch_size": "[1, inf)",
    "gradient_accumulation_steps": "[1, inf)",
    "cutoff_len": "[1, inf)",
    "ray_num_workers": "[1, inf)",
    "preprocessing_num_workers": "[1, inf)",
    "preprocessing_batch_size": "[1, inf)",
    "max_samples": "[1, inf)",
    "save_total_limit": "[1, inf)",
    "num_train_epochs": "(0, inf)",
    "learning_rate": "[0, inf)",
    "warmup_ratio": "[0, 1]",
    "warmup_steps": "[0, inf)",
    "weight_decay": "[0, inf)",
    "max_grad_norm": "[0, inf)",
    "logging_steps": "(0, inf)",
    "save_steps": "(0, inf)",
    "eval_steps": "(0, inf)",
    "dataloader_num_workers": "[0, inf)",
    "val_size": "[0, inf)",
    "adam_beta1": "[0, 1)",
    "adam_beta2": "[0, 1)",
    "seed": "[0, inf)",
    "max_steps": "[-1, inf)",
}


_HINT_RANGE = "without the argument, LLaMA-Factory's default holds"


@dataclass(frozen=True)
class Arguments:
    """The arguments of one run, and where each stands.

    `given` are those that the user wrote as LLaMA-Factory's; `values` adds what the launcher derives.
    `on_ray` says whether Ray will run it; `gpus` whether its workers have GPUs, None where that is not known.
    """

    given: Mapping[str, object]
    values: Mapping[str, object]
    where: Callable[[str], str]
    schema: Schema
    on_ray: bool
    gpus: bool | None

    def get(self, name: str) -> object:
        """The value, or LLaMA-Factory's default."""
        argument = self.schema.arguments.get(name)
        return self.values.get(name, argument.default if argument else None)

    def number(self, name: str) -> float | None:
        """The value if it is a number."""
        value = self.get(name)
        return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None

    def whole(self, name: str, otherwise: int) -> int:
        """The value if it is a whole number above 0."""
        value = self.number(name)
        return int(value) if value is not None and 0 < value < math.inf else otherwise

    def env_vars(self) -> Mapping[str, object]:
        """What the workers get as environment variables, in a YAML that says so itself."""
        found: object = self.values.get("ray_init_kwargs")
        for key in ("runtime_env", "env_vars"):
            found = found.get(key) if isinstance(found, dict) else None
        return found if isinstance(found, dict) else {}

    def finding(self, severity: Severity, rule: str, name: str, what: str, hint: str = "") -> Finding:
        return of(Problem(what, self.where(name), hint, rule), severity)

    def error(self, rule: str, name: str, what: str, hint: str = "") -> Finding:
        return self.finding("error", rule, name, what, hint)

    def warning(self, rule: str, name: str, what: str, hint: str = "") -> Finding:
        return self.finding("warning", rule, name, what, hint)


def unknown_arguments(args: Arguments) -> Iterator[Finding]:
    schema = args.schema
    for name, close in unknown(args.given, schema.arguments):
        added = [version for version, names in schema.adds.items() if name in names]
        hint = close or "LLaMA-Factory would refuse it in the workers"
        if added:
            hint = f"LLaMA-Factory {added[0]} has it; this launcher runs {schema.version}"
        if name == "evaluation_strategy":
            hint = "it is called eval_strategy now"
        yield args.error("unknown-argument", name, f"LLaMA-Factory {schema.version} has no argument '{name}'", hint)


def wrong_types(args: Arguments) -> Iterator[Finding]:
    for name, value in args.given.items():
        argument = args.schema.arguments.get(name)
        if argument is None or argument.accepts(value):
            continue
        if isinstance(value, str) and "${" in value:
            continue  # unexpanded_variables says it better
        if isinstance(value, str) and argument.is_number and (number := as_number(value)) is not None:
            yield args.error("number-as-text", name, f"{name}: {value!r} is text, not a number", f"write {number!r}")
        else:
            kinds = " or ".join(dict.fromkeys(argument.types))
            unquoted = value is False and "no" in argument.choices
            hint = (
                "YAML reads no, off and false as false: write 'no' in quotes" if unquoted else _example(name, argument)
            )
            yield args.error("wrong-type", name, f"{name} must be {kinds}, not {short(value)}", hint)


def _example(name: str, argument: Argument) -> str:
    """A value that the argument takes: a choice, its default, or one of its type."""
    samples: dict[str, object] = {
        "int": 1,
        "float": 1.0e-4,
        "bool": True,
        "str": "text",
        "list": "[a, b]",
        "dict": "{}",
    }
    fits = argument.default is not None and argument.accepts(argument.default)
    value = argument.default if fits else next((samples[kind] for kind in argument.types if kind in samples), "...")
    shown = str(value).lower() if isinstance(value, bool) else value
    return f"for example {name}: {argument.choices[0] if argument.choices else shown}"


def wrong_choices(args: Arguments) -> Iterator[Finding]:
    for name, value in args.given.items():
        argument = args.schema.arguments.get(name)
        choices = argument.choices if argument else ()
        if name == "template":
            choices = tuple(args.schema.templates)
        if choices and isinstance(value, str) and value not in choices:
            hint = near(value, choices, f"one of {', '.join(map(str, choices[:12]))}")
            yield args.error("wrong-choice", name, f"{name} cannot be {short(value)}", hint)


def out_of_range(args: Arguments) -> Iterator[Finding]:
    for name, span in RANGES.items():
        value = args.number(name) if name in args.given else None
        low, high = (float(end) for end in span[1:-1].split(", "))
        if value is None or (low < value < high):
            continue
        if math.isnan(value) or not ((value == low and span[0] == "[") or (value == high and span[-1] == "]")):
            yield args.error(
                "out-of-range", name, f"{name} must be {_in_words(span)}, not {args.given[name]!r}", _HINT_RANGE
            )


def _in_words(span: str) -> str:
    """`[-1, inf)` is `-1 or more`, `(0, inf)` more than 0, `[0, 1)` from 0 to below 1."""
    low, high = span[1:-1].split(", ")
    if high == "inf":
        return f"{low} or more" if span[0] == "[" else f"more than {low}"
    return f"from {low} to {'' if span[-1] == ']' else 'below '}{high}"


def unexpanded_variables(args: Arguments) -> Iterator[Finding]:
    for name, value in args.given.items():
        if isinstance(value, str) and "${" in value:
            yield args.error("unexpanded-variable", name, f"{name}: {short(value)} stays as it is", "write it out")


def as_number(text: str) -> float | int | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return int(value) if value.is_integer() and text.strip("+-").isdigit() else value


def short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
