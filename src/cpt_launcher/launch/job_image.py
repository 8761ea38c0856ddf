"""What a job's image must have: this package's own requirements and those of the extras that the run needs."""

from __future__ import annotations

import importlib.metadata
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cpt_launcher import shipped
from cpt_launcher.errors import NotReadyError, Problem
from cpt_launcher.staging import sources

if TYPE_CHECKING:
    from packaging.requirements import Requirement

BASE_IMAGE = "anyscale/ray-llm:2.48.0-py311-cu128"
_MARKERS = {"python_version": "3.11", "python_full_version": "3.11.0", "sys_platform": "linux"}  # of that image
# The image's own, which go with its CUDA and with Anyscale; setuptools goes with torch.
_OF_THE_IMAGE = {"ray", "torch", "setuptools"}
# Arguments of LLaMA-Factory's that need a package which none of our extras has, and the package.
_UNKNOWN_TO_US = (
    ("flash_attn", "fa2", "flash-attn"),
    ("use_unsloth", True, "unsloth"),
    ("use_unsloth_gc", True, "unsloth"),
    ("use_galore", True, "galore-torch"),
    ("use_apollo", True, "apollo-torch"),
    ("use_badam", True, "badam"),
    ("use_adam_mini", True, "adam-mini"),
    ("use_swanlab", True, "swanlab"),
)
_REPORTS = {"wandb": "wandb", "swanlab": "swanlab", "tensorboard": "tensorboard"}  # report_to, and its package
_COMPILED = {"flash-attn"}


@dataclass(frozen=True)
class Packages:
    """`pinned`: as they are installed here and tested. `ranges`: of ours, without a pin. `others`: of neither."""

    pinned: tuple[str, ...]
    ranges: tuple[str, ...]
    others: tuple[str, ...]

    @property
    def loose(self) -> tuple[str, ...]:
        return (*self.ranges, *self.others)


def packages(train: Mapping[str, object], data: Iterable[str]) -> Packages:
    """What a run with these arguments needs that reads its data from there (URLs and paths).

    Raises:
        NotReadyError: this package is not installed, so that its requirements are not known.
    """
    from packaging.utils import canonicalize_name

    known = shipped.pins()
    wanted = {canonicalize_name(item.name): item for item in _requirements(extras(train, data))}
    own = {name: wanted[name] for name in sorted(wanted) if name not in _OF_THE_IMAGE}
    return Packages(
        tuple(f"{_with_extras(item)}=={known[name]}" for name, item in own.items() if name in known),
        tuple(f"{_with_extras(item)}{item.specifier}" for name, item in own.items() if name not in known),
        tuple(name for name in _others(train) if name not in own),
    )


def extras(train: Mapping[str, object], data: Iterable[str]) -> tuple[str, ...]:
    """The extras of pyproject.toml that a run needs."""
    found = {"train"} | ({"fast"} if train.get("enable_liger_kernel") is True else set())
    for text in data:
        path = sources.path_of(text)
        found |= {sources.EXTRAS[scheme] for scheme in sources.EXTRAS if text.startswith(f"{scheme}://")}
        # What is in a remote folder is not known here.
        found |= {"zst"} if path.endswith(".zst") or sources.is_folder(text) else set()
    return tuple(sorted(found))


def _requirements(wanted: tuple[str, ...]) -> list[Requirement]:
    """Those of this package itself and of its extras."""
    from packaging.requirements import Requirement

    try:
        lines = importlib.metadata.requires("cpt-launcher") or []
    except importlib.metadata.PackageNotFoundError:
        hint = "pip install it, or name an image that has the stack: --image URI"
        raise NotReadyError(Problem("cpt-launcher is not installed, only on the path", "this Python", hint)) from None
    found = (Requirement(line) for line in lines)
    settings = [{**_MARKERS, "extra": extra} for extra in ("", *wanted)]
    return [item for item in found if not item.marker or any(map(item.marker.evaluate, settings))]


def _with_extras(item: Requirement) -> str:
    return f"{item.name}[{','.join(sorted(item.extras))}]" if item.extras else item.name


def _others(train: Mapping[str, object]) -> tuple[str, ...]:
    """Packages that arguments ask for and that this package knows nothing of."""
    found = [package for key, value, package in _UNKNOWN_TO_US if train.get(key) == value]
    asked = train.get("report_to")
    found += [_REPORTS[name] for name in (asked if isinstance(asked, list) else [asked]) if name in _REPORTS]
    if re.search(r"(8|4)bit", str(train.get("optim", ""))) or train.get("quantization_bit"):
        found.append("bitsandbytes")
    return tuple(dict.fromkeys(found))


def containerfile(found: Packages) -> str:
    """The guide's base image with the pinned stack; the launcher itself comes with the job's files.

    Its digest cannot be known here without asking the registry.
    """
    note = f"# A tag can be moved. A digest cannot: FROM {BASE_IMAGE.partition(':')[0]}@sha256:... (docs/security.md)"
    steps = [f"FROM {BASE_IMAGE}\n{note}", _install((*found.pinned, *found.ranges))]
    if plain := [name for name in found.others if name not in _COMPILED]:
        steps.append(f"# Not pinned: this package knows no version of it that was tested.\n{_install(plain)}")
    if compiled := [name for name in found.others if name in _COMPILED]:
        steps.append(f"# Not pinned: compiled for the image's own torch.\n{_install(compiled, '--no-build-isolation')}")
    return "\n\n".join(steps) + "\n"


def _install(wanted: Iterable[str], *options: str) -> str:
    quoted = [f'"{item}"' if set(item) & set("<>[") else item for item in wanted]
    return " \\\n    ".join([" ".join(("RUN pip install --no-cache-dir", *options)), *quoted])
