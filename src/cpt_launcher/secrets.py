"""Keeping secret values out of everything that is written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from cpt_launcher.config import SECRET_NAME

MIN_LENGTH = 6


def named(names: Sequence[str], environ: Mapping[str, str]) -> dict[str, str]:
    """The values of those named, as they are."""
    return {name: environ[name] for name in names if environ.get(name)}


def values(names: Sequence[str], environ: Mapping[str, str]) -> dict[str, str]:
    """Secret values to look for, by name: those named, and every variable that is called like one.

    Values shorter than `MIN_LENGTH` characters are left out: masking `1` or `true` would only spoil the log.
    """
    wanted = [*names, *(name for name in environ if SECRET_NAME.search(name))]
    found = {name: environ.get(name, "") for name in wanted}
    return {name: value for name, value in found.items() if len(value.strip()) >= MIN_LENGTH}


def redact(text: str, secrets: Mapping[str, str]) -> str:
    """`text` with each secret value, and each longer line of one, replaced by `<NAME>`."""
    pieces = ((piece.strip(), name) for name, value in secrets.items() for piece in value.splitlines())
    for piece, name in sorted(pieces, key=lambda pair: -len(pair[0])):
        if len(piece) >= MIN_LENGTH:
            text = text.replace(piece, f"<{name}>")
    return text
