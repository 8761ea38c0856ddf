"""Texts from files and logs as a terminal may have them: nothing in them moves the cursor or gives orders."""

from __future__ import annotations

import re

_COLOUR = re.compile(r"\x1b\[[0-9;:]*m")
# Control characters but tab and line feed, line separators, those that turn the writing's direction, lone surrogates.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_BREAK = re.compile("[ \t]*[\n\r\x0b\x0c\x85\u2028\u2029]+[ \t]*")


def shown(text: str, *, colours: bool = False) -> str:
    """Colours left out or left, other control characters as `\\x1b` or `\\u202e`; tabs and line feeds stay."""
    if not colours:
        return _CONTROL.sub(lambda found: _name(ord(found[0])), _COLOUR.sub("", text))
    codes = _COLOUR.findall(text)
    return "".join(shown(part) + code for part, code in zip(_COLOUR.split(text), [*codes, ""], strict=True))


def flat(text: str, *, colours: bool = False) -> str:
    """The same in one line: a line of its own could be taken for another message, or for a command of GitHub's."""
    return shown(_BREAK.sub(" ", text), colours=colours)


def _name(code: int) -> str:
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}"
