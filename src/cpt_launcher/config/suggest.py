"""Did-you-means for names that are not known."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable, Iterator, Sequence

MOST = 20  # a comparison with every known name each: 24,000 of them would take a minute


def near(name: str, known: Collection[str], otherwise: str = "") -> str:
    """A did-you-mean for `name`, or what to say if nothing is near."""
    close = _closest(name, known)
    return f"did you mean '{close}'?" if close else otherwise


def unknown(names: Iterable[str], known: Collection[str]) -> Iterator[tuple[str, str]]:
    """The names that are not among the known, the first `MOST` of them with a did-you-mean where there is one."""
    for count, name in enumerate(name for name in names if name not in known):
        yield name, near(name, known) if count < MOST else ""


def meant(names: Collection[str], known: Collection[str]) -> dict[str, str]:
    """The misspelt among the names, each with the known one that it stands for; a known name that is there too, or that
    two of them are near to, stands for itself.
    """
    found: dict[str, str] = {}
    for name in [name for name in names if name not in known][:MOST]:
        close = _closest(name, known)
        if close and close not in names and close not in found.values():
            found[name] = close
    return found


def _closest(name: str, known: Collection[str]) -> str | None:
    close: Sequence[str] = difflib.get_close_matches(name, list(known), 1)
    return close[0] if close else None
