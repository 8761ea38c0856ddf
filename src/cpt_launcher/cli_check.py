"""What every command that takes a config does first."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cpt_launcher import terminal, validate


def refuse_mistakes(path: Path, overrides: Sequence[str]) -> None:
    """Go on only if `cpt validate` finds no error; its warnings are shown. The data is read when it is staged.

    Raises:
        ConfigError: there are mistakes in the configuration.
        DataError: all mistakes are in the data.
    """
    report = validate.validate([path], validate.Options(tuple(overrides)))
    for item in report.findings:
        if item.severity == "warning":
            terminal.note(f"warning: {item.message} ({item.path}:{item.line}, {item.rule})")
    validate.refuse(report.findings)
