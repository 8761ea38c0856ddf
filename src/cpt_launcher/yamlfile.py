"""YAML and JSON text to plain values, with the line and column of every key and value.

Two things differ from `yaml.safe_load`, both because of mistakes that are otherwise silent:
a key given twice is an error, and `1e-4` is a number (PyYAML follows YAML 1.1, where it is a string).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml

from cpt_launcher.errors import ConfigError, Problem

MAX_BYTES = 1_000_000
MAX_NODES = 50_000

KeyPath = tuple["str | int", ...]


class _Loader(yaml.SafeLoader):
    """The safe loader, with YAML 1.2's floats."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+$"),
    list("-+0123456789"),
)


@dataclass(frozen=True)
class Mark:
    """A place in a text; line and column count from 1."""

    line: int
    column: int

    @classmethod
    def of(cls, mark: yaml.Mark) -> Mark:
        return cls(mark.line + 1, mark.column + 1)


@dataclass(frozen=True)
class Document:
    """A parsed file: its value, and for each key path the mark of the key and of the value."""

    path: Path
    text: str
    value: object
    keys: Mapping[KeyPath, Mark]
    values: Mapping[KeyPath, Mark]

    def where(self, *key: str | int) -> str:
        """`path:line:column` of the key, or of its nearest parent that has a place in the file."""
        mark = next((self.keys[key[:n]] for n in range(len(key), 0, -1) if key[:n] in self.keys), None)
        return f"{self.path}:{mark.line}:{mark.column}" if mark else str(self.path)


def read(path: Path) -> Document:
    """Read and parse a YAML or JSON file.

    Raises:
        ConfigError: the file is missing, unreadable, too large, not UTF-8, or not YAML.
    """
    try:
        if path.is_dir():
            raise ConfigError(Problem(f"{path} is a folder, not a YAML file", str(path), "name a file in it"))
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise ConfigError(
            Problem(f"there is no file {path}", str(Path.cwd()), "check the path, or see `cpt configs list`")
        ) from None
    except OSError as error:
        raise ConfigError(Problem(f"cannot read {path}: {error.strerror}", str(path))) from None
    if len(raw) > MAX_BYTES:
        hint = "is it a data file? Data belongs into a dataset registry"
        raise ConfigError(Problem(f"larger than {MAX_BYTES:,} bytes", str(path), hint))
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(Problem(f"not UTF-8 text (byte {error.start})", str(path), "save it as UTF-8")) from None
    return parse(text, path)


def parse(text: str, path: Path) -> Document:
    """Parse YAML (and so JSON) text; `path` is only for messages.

    Raises:
        ConfigError: not YAML, a key given twice, or more than `MAX_NODES` values once anchors are expanded.
    """
    try:
        loader = _Loader(text)
        builder = _Builder(loader, path)
        node = loader.get_single_node()
        value = builder.build(node, ()) if node is not None else None
    except yaml.MarkedYAMLError as error:
        place = error.problem_mark or error.context_mark
        mark = Mark.of(place) if place else Mark(1, 1)
        hint = "indent with spaces" if "\\t" in str(error.problem) else "see the line and the one above it"
        raise ConfigError(
            Problem(f"not valid YAML: {error.problem}", f"{path}:{mark.line}:{mark.column}", hint)
        ) from None
    except yaml.YAMLError as error:
        what = str(error).splitlines()[0]
        raise ConfigError(Problem(f"not valid YAML: {what}", str(path), "is it a text file?")) from None
    except RecursionError:
        raise ConfigError(Problem("nested too deeply", str(path), "flatten it")) from None
    if builder.problems:
        raise ConfigError(*builder.problems)
    return Document(path, text, value, builder.keys, builder.values)


class _Builder:
    """Builds plain values from YAML nodes and notes where each came from."""

    def __init__(self, loader: _Loader, path: Path) -> None:
        self.loader = loader
        self.path = path
        self.keys: dict[KeyPath, Mark] = {}
        self.values: dict[KeyPath, Mark] = {}
        self.problems: list[Problem] = []
        self.nodes = 0

    def build(self, node: yaml.Node, at: KeyPath) -> object:
        self.nodes += 1
        if self.nodes > MAX_NODES:
            raise yaml.MarkedYAMLError(problem="too many values (anchors expanded)", problem_mark=node.start_mark)
        self.values[at] = Mark.of(node.start_mark)
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, at)
        if isinstance(node, yaml.SequenceNode):
            return [self.build(item, (*at, index)) for index, item in enumerate(node.value)]
        try:
            value: object = self.loader.construct_object(node)
        except (ValueError, OverflowError) as error:  # 2024-13-45, or an integer of 5,000 digits
            raise yaml.MarkedYAMLError(problem=str(error), problem_mark=node.start_mark) from None
        return value

    def _mapping(self, node: yaml.MappingNode, at: KeyPath) -> dict[str, object]:
        own = {id(key_node) for key_node, _ in node.value}
        self.loader.flatten_mapping(node)  # puts what `<<` merges in first, so that own keys win
        built: dict[str, object] = {}
        written: set[KeyPath] = set()
        for key_node, value_node in node.value:
            mark = Mark.of(key_node.start_mark)
            if not isinstance(key_node, yaml.ScalarNode):
                raise yaml.MarkedYAMLError(problem="a key must be plain text", problem_mark=key_node.start_mark)
            key = str(key_node.value)
            if (*at, key) in written and id(key_node) in own:
                first = self.keys[(*at, key)]
                where = f"{self.path}:{mark.line}:{mark.column}"
                self.problems.append(
                    Problem(f"key '{key}' stands here and in line {first.line}", where, "remove one of the two")
                )
            if id(key_node) in own:
                written.add((*at, key))
            self.keys[(*at, key)] = mark
            built[key] = self.build(value_node, (*at, key))
        return built


def dump(value: object) -> str:
    """YAML that reads back as the same value in PyYAML, keys in the order given."""
    return yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=10_000)
