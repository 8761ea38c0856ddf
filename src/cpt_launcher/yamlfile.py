"""YAML and JSON text to plain values, with the line and column of every key and value.

Two things differ from `yaml.safe_load`, both because of mistakes that are otherwise silent:
a key given twice is an error, and `1e-4` is a number (PyYAML follows YAML 1.1, where it is a string).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml

from cpt_launcher.errors import ConfigError, Problem

MAX_BYTES = 1_000_000
MAX_NODES = 50_000
MAX_DEPTH = 100
MAX_BITS = 1000

KeyPath = tuple["str | int", ...]


class _Yaml11Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """PyYAML's safe loader, in C where it is built."""


class _Loader(_Yaml11Loader):
    """The same, with YAML 1.2's floats."""


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
    overridden: frozenset[KeyPath] = frozenset()

    def where(self, *key: str | int) -> str:
        """`path:line:column` of the key, or of its nearest parent that has a place in the file."""
        if any(key[:n] in self.overridden for n in range(1, len(key) + 1)):
            return "command line"
        mark = next((self.keys[key[:n]] for n in range(len(key), 0, -1) if key[:n] in self.keys), None)
        return f"{self.path}:{mark.line}:{mark.column}" if mark else str(self.path)


def read(path: Path, *, yaml11: bool = False) -> Document:
    """Read and parse a YAML or JSON file; see `parse`.

    Raises:
        ConfigError: the file is missing, unreadable, too large, not UTF-8, or not YAML.
    """
    try:
        if path.exists() and not path.is_dir() and not path.is_file():  # a pipe would be waited for
            raise ConfigError(_unreadable(f"{path} is not a regular file", path, "name a YAML file"))
        if path.is_dir():
            raise ConfigError(_unreadable(f"{path} is a folder, not a YAML file", path, "name a file in it"))
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        hint = "check the path, or see `cpt configs list`"
        raise ConfigError(_unreadable(f"there is no file {path}", Path.cwd(), hint)) from None
    except OSError as error:
        raise ConfigError(_unreadable(f"cannot read {path}: {error.strerror}", path, "check the file")) from None
    if len(raw) > MAX_BYTES:
        hint = "is it a data file? Data belongs into a dataset registry"
        raise ConfigError(_unreadable(f"larger than {MAX_BYTES:,} bytes", path, hint))
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(_unreadable(f"not UTF-8 text (byte {error.start})", path, "save it as UTF-8")) from None
    if path.suffix == ".json":
        text = _json(text, path)
    return parse(text, path, yaml11=yaml11)


def _json(text: str, path: Path) -> str:
    """JSON text that is YAML too, with every place where it was. YAML would let commas and comments pass that JSON's
    readers refuse, and refuses tabs, which in JSON stand only between values.
    """
    try:
        json.loads(text)
    except json.JSONDecodeError as error:
        if not text.strip() or error.msg == "Extra data":
            return text  # an empty file, or JSON lines: data
        hint = "JSON takes no comments and no comma after the last item"
        where = f"{path}:{error.lineno}:{error.colno}"
        raise ConfigError(Problem(f"not valid JSON: {error.msg}", where, hint, "yaml-syntax")) from None
    except (ValueError, RecursionError):
        return text  # a number too long, or nesting too deep: said by `parse`, with its place
    return text.replace("\t", " ")


def _unreadable(what: str, path: Path, hint: str) -> Problem:
    return Problem(what, str(path), hint, "file-unreadable")


def parse(text: str, path: Path, *, yaml11: bool = False) -> Document:
    """Parse YAML (and so JSON) text.

    Args:
        path: only for messages.
        yaml11: read `1e-4` as LLaMA-Factory will, as text.

    Raises:
        ConfigError: not YAML, a key given twice, or more than `MAX_NODES` values once anchors are expanded.
    """
    try:
        _bounded(text)
        loader = _Yaml11Loader(text) if yaml11 else _Loader(text)
        builder = _Builder(loader, path)
        node = loader.get_single_node()
        value = builder.build(node, ()) if node is not None else None
    except yaml.MarkedYAMLError as error:
        raise ConfigError(_syntax(error, text, path)) from None
    except yaml.YAMLError as error:
        what = str(error).splitlines()[0]
        raise ConfigError(Problem(f"not valid YAML: {what}", str(path), "is it a text file?", "yaml-syntax")) from None
    if builder.problems:
        raise ConfigError(*builder.problems)
    return Document(path, text, value, builder.keys, builder.values)


def _bounded(text: str) -> None:
    """Refuse what the composer could not survive: it recurses, in C, without a limit of its own."""
    depth = 0
    for count, event in enumerate(yaml.parse(text, _Loader)):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_DEPTH or count > 2 * MAX_NODES:
            what = "nested too deeply" if depth > MAX_DEPTH else "too many values"
            raise yaml.MarkedYAMLError(problem=what, problem_mark=event.start_mark)  # type: ignore[arg-type]


def _syntax(error: yaml.MarkedYAMLError, text: str, path: Path) -> Problem:
    place = error.problem_mark or error.context_mark
    mark = Mark.of(place) if place else Mark(1, 1)
    line = [*text.split("\n"), ""][min(mark.line - 1, text.count("\n"))]
    is_tab = line[mark.column - 1 : mark.column] == "\t"
    what = "a tab; YAML is indented with spaces" if is_tab else error.problem
    hint = "use spaces" if is_tab else "look at this line and the one above it"
    return Problem(f"not valid YAML: {what}", f"{path}:{mark.line}:{mark.column}", hint, "yaml-syntax")


class _Builder:
    """Builds plain values from YAML nodes and notes where each came from."""

    def __init__(self, loader: _Yaml11Loader, path: Path) -> None:
        self.loader = loader
        self.path = path
        self.keys: dict[KeyPath, Mark] = {}
        self.values: dict[KeyPath, Mark] = {}
        self.problems: list[Problem] = []
        self.nodes = 0

    def build(self, node: yaml.Node, at: KeyPath) -> object:
        self.nodes += 1
        if len(at) > MAX_DEPTH:  # only an anchor inside itself gets here
            raise yaml.MarkedYAMLError(problem="nested too deeply", problem_mark=node.start_mark)
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
        if isinstance(value, int) and value.bit_length() > MAX_BITS:  # neither a float nor text any more
            raise yaml.MarkedYAMLError(problem="a number of that size is none", problem_mark=node.start_mark)
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
                what = f"key '{key}' stands here and in line {first.line}"
                self.problems.append(Problem(what, where, "remove one of the two", "duplicate-key"))
            if id(key_node) in own:
                written.add((*at, key))
            self.keys[(*at, key)] = mark
            built[key] = self.build(value_node, (*at, key))
        return built


def dump(value: object) -> str:
    """YAML that reads back as the same value in PyYAML, keys in the order given."""
    return yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=10_000)
