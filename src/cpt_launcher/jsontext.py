"""JSON from files that anybody may have written, and JSON that everybody can read."""

from __future__ import annotations

import json
import math
import os
import stat
from collections.abc import Mapping
from pathlib import Path

MAX_BYTES = 64 << 20
MAX_NUMBER = 2**63


def parse(text: str | bytes) -> object:
    """The value in a text.

    Raises:
        ValueError: it is none, or nested deeper than Python reads.
    """
    try:
        value: object = json.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    return value


def load(path: Path) -> object:
    """The value in a file; a pipe or a device in its place is not waited for.

    Raises:
        OSError: it cannot be read, or is no plain file.
        ValueError: it holds none, or is larger than anything of ours.
    """
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:
        found = os.fstat(file.fileno())
        if not stat.S_ISREG(found.st_mode):
            raise OSError("it is no plain file")
        if found.st_size > MAX_BYTES:
            raise ValueError(f"{found.st_size:,} bytes are too many")
        return parse(file.read())


def mapping(path: Path) -> dict[str, object]:
    """The object in a file; empty where there is none."""
    try:
        value = load(path)
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def is_number(value: object) -> bool:
    """Whether it is a number that can be reckoned with as a float; NaN is one."""
    return (isinstance(value, int) and abs(value) < MAX_NUMBER) or isinstance(value, float)


def is_count(value: object) -> bool:
    """Whether it is a whole number, not negative."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < MAX_NUMBER


def dumps(value: object, indent: int = 1, *, ensure_ascii: bool = True) -> str:
    """A value as JSON; what JSON has no number for (NaN, infinity) is null."""
    return json.dumps(_finite(value), indent=indent, ensure_ascii=ensure_ascii, allow_nan=False)


def _finite(value: object) -> object:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return value
