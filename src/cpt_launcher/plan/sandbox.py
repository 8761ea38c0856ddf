"""Jinja2 for templates of other people's: they put values into text, reach nothing else, and come to an end."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from types import CodeType

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment

MOST = 1_000_000  # characters of the text, steps of all loops over numbers, items of what `*` makes
LARGEST = 1_000  # digits of a number, about


class Sandbox(ImmutableSandboxedEnvironment):
    """Jinja2's own sandbox, which refuses attributes that lead to Python itself, with bounds on what it makes."""

    intercepted_binops = frozenset({"*", "**"})

    def __init__(self) -> None:
        super().__init__(undefined=jinja2.StrictUndefined, keep_trailing_newline=True, autoescape=False)

    def fill(self, source: str, values: Mapping[str, object]) -> str:
        """The text that a template makes.

        Raises:
            jinja2.TemplateError: it is not one, or fails; SecurityError where it does what it may not.
            OverflowError: it makes too much.
        """
        steps = 0

        def numbers(*bounds: int) -> range:
            nonlocal steps
            made = range(*bounds)
            steps += len(made)
            if steps > MOST:
                raise OverflowError(f"more than {MOST:,} steps of loops")
            return made

        self.globals["range"] = numbers
        pieces, size = [], 0
        template = jinja2.Template.from_code(self, _compiled(source), self.make_globals(None))
        for piece in template.generate(values):
            pieces.append(piece)
            size += len(piece)
            if size > MOST:
                raise OverflowError(f"more than {MOST:,} characters of text")
        return "".join(pieces)

    def call_binop(self, context: jinja2.runtime.Context, operator: str, left: object, right: object) -> object:
        """`*` and `**`, where the result is of a size that a template may have a use for."""
        if isinstance(left, int) and isinstance(right, int):
            digits = left.bit_length() * right if operator == "**" else left.bit_length() + right.bit_length()
            too_much = digits > 4 * LARGEST
        else:
            count = next((item for item in (left, right) if isinstance(item, int)), 0)
            made = next((item for item in (left, right) if isinstance(item, str | bytes | list | tuple)), ())
            too_much = len(made) * count > MOST
        if too_much:
            raise OverflowError(f"{operator} would make too much")
        return super().call_binop(context, operator, left, right)


@functools.lru_cache(maxsize=8)
def _compiled(source: str) -> CodeType:
    """A template's code: a hundred configs are checked with one template."""
    return Sandbox().compile(source)
