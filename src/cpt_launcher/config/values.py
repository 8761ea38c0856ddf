"""Typed values out of a parsed file, every problem noted on the way."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TypeVar

from cpt_launcher.config.document import Document
from cpt_launcher.config.suggest import meant, unknown
from cpt_launcher.errors import Problem

T = TypeVar("T")

_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")
_TYPE_NAMES = {
    str: "text", int: "a whole number", float: "a number", bool: "true or false", dict: "a mapping", list: "a list"
}  # fmt: skip
_EXAMPLES = {
    str: '"text", in quotes where it looks like a number', int: "2, without quotes", float: "0.1, without quotes",
    bool: "true, without quotes", dict: "{name: value}", list: "[first, second]",
}  # fmt: skip


class Values:
    """Takes typed values out of a document and collects every problem on the way."""

    def __init__(self, document: Document, environ: Mapping[str, str]) -> None:
        self.document = document
        self.environ = environ
        self.problems: list[Problem] = []

    def _add(self, what: str, key: tuple[str | int, ...], hint: str = "", rule: str = "wrong-value") -> None:
        self.problems.append(Problem(what, self.document.where(*key), hint, rule))

    def _known(self, values: Mapping[str, object], known: Sequence[str], at: tuple[str, ...]) -> dict[str, object]:
        """The values, a misspelt key's under the name that was meant: what is said of it then is no consequence of the
        spelling. Every unknown key is a problem.
        """
        for key, near in unknown(values, known):
            hint = near or f"the keys here are {', '.join(known)}"
            if not at and not near:
                hint += f". LLaMA-Factory's own arguments go under train: (train.{key})"
            self._add(f"unknown key '{'.'.join((*at, key))}'", (*at, key), hint, "unknown-key")
        right = meant(values, known)
        for key, name in right.items():
            self.document = self.document.moved((*at, key), (*at, name))
        return {right.get(key, key): value for key, value in values.items()}

    def _take(self, values: Mapping[str, object], key: str, kind: type[T], default: T, *at: str) -> T:
        """The value of `key` if it is of `kind`; otherwise a problem is noted and the default stands in."""
        value = values.get(key)
        if value is None:
            return default
        if isinstance(value, kind) and (kind is bool or not isinstance(value, bool)):
            return value
        name = ".".join((*at, key))
        hint = f"for example {key}: {_EXAMPLES[kind]}"
        self._add(f"{name} must be {_TYPE_NAMES[kind]}, not {value!r}", (*at, key), hint, "wrong-type")
        return default

    def _count(self, values: Mapping[str, object], key: str, hint: str) -> int:
        count = self._take(values, key, int, 0)
        if count < 0:
            self._add(f"{key} cannot be {count}", (key,), hint, "out-of-range")
        return count

    def _required(self, values: Mapping[str, object], key: str, hint: str) -> str:
        if values.get(key) in (None, ""):
            self._add(f"'{key}' is missing", (key,), hint, "missing-key")
            return ""
        return self._take(values, key, str, "")

    def _expanded(self, values: Mapping[str, object], key: str, *, required: bool = False) -> str:
        """Text with `${VAR}` replaced from the environment; an unset variable is a problem."""
        hints = {
            "storage": "a folder that every worker can reach: storage: /mnt/cluster_storage",
            "model": "a Hugging Face id or a folder: model: google/gemma-3-4b-pt",
        }
        text = self._required(values, key, hints[key]) if required else self._take(values, key, str, "")
        for name in _VARIABLE.findall(text):
            if not self.environ.get(name):
                self._add(
                    f"{key} names ${{{name}}}, which is not set", (key,), f"export {name}=... first", "unset-variable"
                )
        path = _VARIABLE.sub(lambda match: self.environ.get(match[1], ""), text)
        if "\0" in path or len(path) > 4000 or any(len(part) > 255 for part in path.split("/")):
            self._add(f"{key} cannot be a path", (key,), hints[key])
            return ""
        return path
