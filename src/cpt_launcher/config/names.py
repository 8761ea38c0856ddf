"""Names on the shared storage: which ones a run, a staged file or folder, and the files of a folder may have."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from pathlib import PurePosixPath

# LLaMA-Factory 0.9.3, extras/constants.py, FILEEXT2TYPE; lower case only.
EXTENSIONS = (".arrow", ".csv", ".json", ".jsonl", ".parquet", ".txt")
# What lies directly under the storage beside runs and data; `.cpt` is hidden, and so out of reach anyhow.
RESERVED = ("dataset_info.json", "mlartifacts", "mlflow.db", "models", "tokenized")
COMPRESSED = (".gz", ".zst")
# What accompanies data and is none: files that tell of it, and the indices of registries and of the hub.
_TELLING = ("readme", "license", "licence", "copying", "notice", "changelog", "citation", "authors", "contributing")
_INDICES = ("dataset_info.json", "dataset_infos.json")


def plain_name(name: str) -> str:
    """A file's name once it is decompressed."""
    return next((name.removesuffix(ending) for ending in COMPRESSED if name.endswith(ending)), name)


def is_data(name: str) -> bool:
    """Whether LLaMA-Factory loads a file of this name."""
    return PurePosixPath(name).suffix in EXTENSIONS


def wrong_run(name: str) -> str | None:
    """Why a run cannot be called so, None if it can."""
    if name.casefold() in RESERVED:
        return "cpt keeps something else under that name"
    return "it ends like a data file" if is_data(name.casefold()) else None


def wrong_target(name: str) -> str | None:
    """Why nothing of this name can be staged directly under the storage, None if it can."""
    if name in ("", ".", ".."):
        return "that is no name"
    if name.startswith("."):
        return "it begins with a dot"
    if name.casefold() in RESERVED:
        return "cpt keeps something else under that name"
    return wrong_inner(name)


def wrong_inner(inner: str) -> str | None:
    """Why a path inside a folder is none, None if it is one: it must stay in the folder, and be fit to be printed."""
    if has_control(inner):
        return "it holds control characters"
    if any(part in ("", ".", "..") for part in inner.split("/")):
        return "it leads out of its folder, or has empty parts"
    return None


def has_control(text: str) -> bool:
    """Whether a text holds control characters, line breaks or half characters, which no terminal and no file bears."""
    return any(unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") for character in text)


def is_hidden(inner: str) -> bool:
    """Whether a path inside a folder is hidden, or in something hidden: `.git/x`, `_SUCCESS`, `_temporary/x`."""
    return any(part.startswith((".", "_")) for part in inner.split("/"))


def is_documentation(inner: str) -> bool:
    """Whether a file of a folder tells of the data beside it: `README.md`, `LICENSE-MIT`, `dataset_infos.json`. Of
    those that could be documents themselves only `README.txt` and the like, never `license_agreement_7.txt`.
    """
    name = PurePosixPath(inner).name.casefold()
    if name in _INDICES:
        return True
    stem = name.removesuffix(".txt") if is_data(name) else re.split(r"[-.]", name, maxsplit=1)[0]
    return stem in _TELLING


def wrong_kinds(names: Iterable[str]) -> str | None:
    """Why LLaMA-Factory does not load these files of one dataset, None if it does."""
    kinds = sorted({PurePosixPath(plain_name(name)).suffix for name in names})
    bad = [kind or "a name without ending" for kind in kinds if kind not in EXTENSIONS]
    if bad:
        return f"LLaMA-Factory does not load {', '.join(bad)}"
    return f"a folder must hold files of one kind, not {', '.join(kinds)}" if len(kinds) > 1 else None
