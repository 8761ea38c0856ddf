"""What every command that takes a config does first."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cpt_launcher import terminal, validate, yamlfile


def refuse_mistakes(path: Path, overrides: Sequence[str], besides: Sequence[str] = ()) -> None:
    """Continue only if `cpt validate` finds no error; its warnings are shown. The data is read when it is staged.

    Args:
        besides: rules that do not matter to the command.

    Raises:
        ConfigError: there are mistakes in the configuration.
        DataError: all mistakes are in the data.
    """
    if path.is_dir():
        yamlfile.read(path)  # a command takes one config; folders are for `cpt validate`
    report = validate.validate([path], validate.Options(tuple(overrides)))
    found = [item for item in report.findings if item.rule not in besides]
    for item in found:
        if item.severity == "warning":
            terminal.note(f"warning: {item.message} ({item.place}, {item.rule})")
    validate.refuse(found)
