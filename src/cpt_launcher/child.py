"""Python processes beside this one, which import nothing from the working directory: a module of the same name there
would run in their place, with their environment.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent  # what this package is imported from
FOLDER = Path(__file__).resolve().parent / "data"  # a directory to start in that holds no module
_WITHOUT = "import runpy, sys; sys.path.pop(0); runpy.run_module(sys.argv.pop(1), run_name='__main__', alter_sys=True)"


def argv(module: str, *arguments: str, version: tuple[int, ...] = sys.version_info[:2]) -> tuple[str, ...]:
    """`python -m module arguments` without the working directory on `sys.path`; `-P` came with Python 3.11."""
    how = ("-P", "-m") if version >= (3, 11) else ("-c", _WITHOUT)
    return (sys.executable, *how, module, *arguments)


def env(environ: Mapping[str, str]) -> dict[str, str]:
    """`environ` for such a process, started in any directory: it finds this very package, also where that came from
    the working directory (a Ray job's files), and `PYTHONPATH` says the same wherever it is read.
    """
    given = _entries(environ)
    own = str(ROOT) in sys.path and Path.cwd() != ROOT and str(ROOT) not in _entries(os.environ)
    paths = given if own or str(ROOT) in given else [str(ROOT), *given]
    kept = {key: value for key, value in environ.items() if key != "PYTHONPATH"}
    return {**kept, "PYTHONPATH": os.pathsep.join(paths)} if paths else kept


def _entries(environ: Mapping[str, str]) -> list[str]:
    return [str(Path(entry).absolute()) for entry in environ.get("PYTHONPATH", "").split(os.pathsep) if entry]
