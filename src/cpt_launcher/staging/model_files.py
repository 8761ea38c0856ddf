"""A model's folder, where its files make transformers write or read elsewhere (seen in 4.52.4).

Chat templates are saved under their names, so a name with `../` leaves the folder of every checkpoint (CVE-2026-9856).
They are in `tokenizer_config.json`, in `special_tokens_map.json` where that has the last word, in the processor's
files, and in a folder of their own. A vocabulary file that the tokenizer's config names is read where it says, and
copied into every checkpoint.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from cpt_launcher.errors import Problem

WITH_TEMPLATES = ("tokenizer_config.json", "special_tokens_map.json", "chat_template.json", "processor_config.json")
FOLDER = "additional_chat_templates"
MAX_BYTES = 100_000_000
_NAME = re.compile(r"(?!\.+$)[\w.-]+")
_ONLY_NOTED = ("special_tokens_map_file", "tokenizer_file", "added_tokens_file")  # transformers takes none of them
_HINT = "do not use this model, and tell those who publish it"


def check(folder: Path) -> list[Problem]:
    """What is wrong with a model's folder; files that are not there are no matter."""
    found = [problem for name in WITH_TEMPLATES for problem in _file(folder / name)]
    for path in sorted((folder / FOLDER).glob("*.jinja")):
        found += _names([path.name.removesuffix(".jinja")], path)
    return found


def strays(names: list[str]) -> list[str]:
    """Those of a repository's file names that lead out of the folder they are downloaded to."""
    return [name for name in names if _leads_out(name) or "\\" in name]


def _file(path: Path) -> Iterator[Problem]:
    try:
        if not path.exists():
            return
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
        values = json.loads(raw) if len(raw) <= MAX_BYTES else None
    except (OSError, ValueError, RecursionError) as error:
        yield Problem(f"not readable as JSON ({error or type(error).__name__})", str(path), "fetch the model again")
        return
    if not isinstance(values, dict):
        yield Problem("not a mapping, or larger than 100 MB", str(path), "fetch the model again")
        return
    yield from _names(_templates(values.get("chat_template")), path)
    if path.name == "tokenizer_config.json":
        yield from _vocabularies(values, path)


def _templates(given: object) -> list[object]:
    """The names of chat templates: keys of a mapping, or `name` of each in a list."""
    if isinstance(given, list):
        return [item.get("name", "") if isinstance(item, dict) else item for item in given]
    return list(given) if isinstance(given, dict) else []


def _names(names: list[object] | list[str], path: Path) -> Iterator[Problem]:
    for name in names:
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            what = f"a chat template is called {str(name)[:60]!r}, and transformers writes a file of that name"
            yield Problem(what, str(path), _HINT)


def _vocabularies(values: dict[str, object], path: Path) -> Iterator[Problem]:
    inputs = values.get("init_inputs")
    named = [(key, value) for key, value in values.items() if key.endswith("_file") and key not in _ONLY_NOTED]
    named += [("init_inputs", value) for value in (inputs if isinstance(inputs, list) else [])]
    for key, value in named:
        if isinstance(value, str) and _leads_out(value) and not _inside(value, path.parent):
            what = f"{key} names {value[:60]!r}: a file of this machine would be copied into every checkpoint"
            yield Problem(what, str(path), _HINT)


def _leads_out(name: str) -> bool:
    return name.startswith(("/", "~")) or ".." in PurePosixPath(name).parts


def _inside(name: str, folder: Path) -> bool:
    return os.path.abspath(name).startswith(f"{os.path.abspath(folder)}/")  # noqa: PTH100
