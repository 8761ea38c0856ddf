"""Where configs, DeepSpeed files and dataset registries are looked for."""

from __future__ import annotations

from pathlib import Path

CONFIGS = "configs"
DEEPSPEED = "deepspeed-configs"
DATASETS = "dataset-configs"
REGISTRY = "dataset_info.json"

_PACKAGE = Path(__file__).resolve().parent


def shipped(folder: str) -> Path:
    """The package's own copy of `folder`: inside an installed wheel, else in the clone it runs from."""
    inside = _PACKAGE / "shipped" / folder
    return inside if inside.is_dir() else _PACKAGE.parents[1] / folder


def template(name: str) -> Path:
    """The template called `name`: a file of the user's if it ends in `.j2`, else a shipped one."""
    return Path(name) if name.endswith(".j2") else _PACKAGE / "templates" / f"{name}.yaml.j2"


def search_path(folder: str, config: Path | None = None) -> tuple[Path, ...]:
    """Folders to look in, first match wins: the working directory's, the config's neighbours, the shipped."""
    near = [config.resolve().parent, config.resolve().parent.parent / folder] if config else []
    candidates = [Path.cwd() / folder, *near, shipped(folder)]
    return tuple(dict.fromkeys(path for path in candidates if path.is_dir()))
