"""What every command that takes a config does first."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path

from cpt_launcher.cli import show, which
from cpt_launcher.config import document, read
from cpt_launcher.errors import ConfigError
from cpt_launcher.validate import files


def refuse_mistakes(path: Path, overrides: Sequence[str], besides: Sequence[str] = ()) -> None:
    """Continue only if `cpt validate` finds no error; its warnings are shown. The data is read when it is staged.

    Args:
        besides: rules that do not matter to the command.

    Raises:
        ConfigError: there are mistakes in the configuration.
        DataError: all mistakes are in the data.
        StorageError: the storage is a file.
    """
    if path.is_dir():
        document.read(path)  # a command takes one config; folders are for `cpt validate`
    with contextlib.suppress(ConfigError):  # said with all other mistakes, below
        which.refuse_file(read.read(path, overrides).storage)
    report = files.validate([path], files.Options(tuple(overrides)))
    found = [item for item in report.findings if item.rule not in besides]
    for item in found:
        if item.severity == "warning":
            show.note(f"warning: {item.message} ({item.place}, {item.rule})")
    files.refuse(found)
