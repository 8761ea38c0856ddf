"""Where staged files may go: below the storage, and into nothing that is not a dataset's."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from cpt_launcher.config import names
from cpt_launcher.config.names import EXTENSIONS
from cpt_launcher.errors import ConfigError, Problem
from cpt_launcher.layout import Layout
from cpt_launcher.staging.dataset import Copy

_HINT = 'give it another name (a dataset: by its entry\'s "file_name")'


def refuse(copies: Sequence[Copy], layout: Layout) -> None:
    """Look at every place before anything is written. Links among the folders on the way are followed; a link in the
    place of the file itself is not, since staging replaces it.

    Raises:
        ConfigError: a place outside the storage, in a run's folder, under a reserved name or without a data ending.
    """
    staged = [copy for copy in copies if copy.cloud is None]
    folders = dict.fromkeys(copy.target if copy.is_folder else copy.target.parent for copy in staged)
    problems = [problem for copy in staged for problem in _name(copy, layout)]
    problems = problems or [problem for folder in folders for problem in _folder(folder, layout)]
    if problems:
        raise ConfigError(*dict.fromkeys(problems))


def refuse_run(layout: Layout, staged: Iterable[str]) -> None:
    """A run in a dataset's folder would be trained on.

    Args:
        staged: what the manifest names.

    Raises:
        ConfigError: the run has the name of a staged folder.
    """
    if any(name.startswith(f"{layout.run}/") for name in staged):
        what = f"a dataset's folder on the storage has the name of the run '{layout.run}'"
        raise ConfigError(Problem(what, str(layout.run_dir), "give the run another name, with name=..."))


def _name(copy: Copy, layout: Layout) -> Iterator[Problem]:
    inner = os.path.relpath(copy.target, layout.storage)
    first = inner.split("/")[0]
    wrong = names.wrong_target(first) or names.wrong_inner(inner)
    if wrong:
        yield Problem(f"{copy.shown} cannot be staged as {inner!r}: {wrong}", str(layout.storage), _HINT)
    elif first == layout.run:
        what = f"{copy.shown} would be staged into the folder of the run '{layout.run}'"
        yield Problem(what, str(copy.target), f"{_HINT}, or the run another name")
    elif not copy.is_folder and not names.is_data(copy.target.name):
        what = f"{copy.shown} cannot be staged as {inner!r}: it has no data ending"
        yield Problem(what, str(layout.storage), f"one of {' '.join(EXTENSIONS)}: {_HINT}")


def _folder(folder: Path, layout: Layout) -> Iterator[Problem]:
    root, real = Path(os.path.realpath(layout.storage)), Path(os.path.realpath(folder))
    if not real.is_relative_to(root):
        what = "a link leads out of the storage, and nothing is staged there"
        yield Problem(f"{what}: {real}", str(folder), "remove the link, or put a folder in its place")
        return
    inside = real.relative_to(root)
    if inside.parts and (wrong := names.wrong_target(inside.parts[0])):
        yield Problem(f"nothing can be staged into {real}: {wrong}", str(folder), _HINT)
    for run in (root / Path(*inside.parts[:depth]) for depth in range(1, len(inside.parts) + 1)):
        if Layout(root, str(run.relative_to(root))).run_json.exists():
            yield Problem("nothing can be staged into the folder of a run", str(run), _HINT)
