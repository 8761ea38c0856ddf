"""A JSON Schema of the launcher config, for editors: keys, types and help while one types."""

from __future__ import annotations

import json
from typing import Any

from cpt_launcher.config.arguments import DATA, Argument, Schema
from cpt_launcher.config.launcher import OWNED

_TYPES = {"str": "string", "int": "integer", "float": "number", "bool": "boolean", "list": "array", "dict": "object"}


def config_schema(schema: Schema) -> dict[str, Any]:
    """The launcher's own keys (JSON Schema draft 7) with LLaMA-Factory's arguments under `train`."""
    whole: dict[str, Any] = json.loads((DATA / "launcher.schema.json").read_text(encoding="utf-8"))
    train = {name: _argument(argument) for name, argument in schema.arguments.items() if name not in OWNED}
    whole["properties"]["train"]["properties"] = train
    return whole


def _argument(argument: Argument) -> dict[str, Any]:
    kinds: list[str] = sorted({_TYPES[kind] for kind in argument.types if kind in _TYPES})
    nothing = ["null"] if argument.optional else []
    shape: dict[str, Any] = {"type": kinds + nothing}
    if argument.choices:
        shape = {"enum": [*argument.choices, *([None] if argument.optional else [])]}
    default = {} if argument.default is None else {"default": argument.default}
    return {**shape, **default, "description": argument.help}
