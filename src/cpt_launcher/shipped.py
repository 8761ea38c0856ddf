"""Where configs, DeepSpeed files and dataset registries are looked for."""

from __future__ import annotations

import os
from pathlib import Path

from cpt_launcher.errors import ConfigError, Problem

CONFIGS = "configs"
DEEPSPEED = "deepspeed-configs"
DATASETS = "dataset-configs"
REGISTRY = "dataset_info.json"
SCHEMA_LINE = "# yaml-language-server: $schema=../src/cpt_launcher/data/config.schema.json"

_PACKAGE = Path(__file__).resolve().parent


def from_user(text: str) -> Path:
    """A path that a user wrote, absolute and with `~` expanded; unlike pathlib's own, it never fails."""
    return Path(os.path.abspath(os.path.expanduser(text)))  # noqa: PTH100, PTH111


def is_file(path: Path | str) -> bool:
    """Whether there is such a file; text that cannot be a path (too long, a null byte) is none."""
    return os.path.isfile(path)  # noqa: PTH113


def is_dir(path: Path | str) -> bool:
    """Whether there is such a folder; see `is_file`."""
    return os.path.isdir(path)  # noqa: PTH112


def exists(path: Path | str) -> bool:
    """Whether there is anything of that name; see `is_file`."""
    return os.path.exists(path)  # noqa: PTH110


def shipped(folder: str) -> Path:
    """The package's own copy of `folder`: inside an installed wheel, else in the clone it runs from."""
    inside = _PACKAGE / "shipped" / folder
    return inside if inside.is_dir() else _PACKAGE.parents[1] / folder


def template(name: str, ending: str = ".yaml.j2") -> Path:
    """The template called `name`: a file of the user's if it ends in `.j2`, else a shipped one."""
    return Path(name) if name.endswith(".j2") else _PACKAGE / "templates" / f"{name}{ending}"


def pins() -> dict[str, str]:
    """The version of each package that this one is tested with, by its name with hyphens."""
    inside = _PACKAGE / "data" / "pins.txt"
    path = inside if inside.is_file() else _PACKAGE.parents[1] / "pins.txt"
    lines = (line.partition("==") for line in path.read_text(encoding="utf-8").splitlines())
    return {
        name.strip().lower().replace("_", "-"): rest.split(";")[0].strip() for name, equals, rest in lines if equals
    }


def search_path(folder: str, config: Path | None = None) -> tuple[Path, ...]:
    """Folders to look in, first match wins: the working directory's, the config's neighbours, the shipped."""
    near = [config.resolve().parent, config.resolve().parent.parent / folder] if config else []
    candidates = [Path.cwd() / folder, *near, shipped(folder)]
    return tuple(dict.fromkeys(path for path in candidates if path.is_dir()))


def shipped_files() -> list[tuple[str, Path]]:
    """Every shipped file with the folder it belongs to."""
    folders = (CONFIGS, DEEPSPEED, DATASETS)
    return [(folder, path) for folder in folders for path in sorted(shipped(folder).iterdir()) if path.is_file()]


def shipped_file(name: str) -> Path:
    """A shipped file by its name, with its folder or without, with `.yaml` or without.

    Raises:
        ConfigError: there is none of that name.
    """
    for folder, path in shipped_files():
        if name in (path.name, f"{folder}/{path.name}", path.stem):
            return path
    raise ConfigError(Problem(f"no file '{name}' ships with cpt", "cpt configs", "see `cpt configs list`"))


def with_schema_path(path: Path) -> str:
    """A shipped file's text; a config's line for editors names this installation's schema."""
    schema = (_PACKAGE / "data" / "config.schema.json").as_uri()
    return path.read_text(encoding="utf-8").replace(SCHEMA_LINE, f"# yaml-language-server: $schema={schema}", 1)
