"""YAML and JSON text to plain values, with the line and column of every key and value.

Two things differ from `yaml.safe_load`, both because of mistakes that are otherwise silent:
a key given twice is an error, and `1e-4` is a number (PyYAML follows YAML 1.1, where it is a string).
"""

from __future__ import annotations

import bisect
import contextlib
import difflib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import yaml

from cpt_launcher.errors import ConfigError, Problem

MAX_BYTES = 1_000_000
MAX_NODES = 50_000
MAX_DEPTH = 100
MAX_MERGES = 10  # `<<` inside what `<<` merges in
MAX_BITS = 1000
MAX_DIGITS = 10_000  # characters of a number: reading `1:1:1:...` takes the square of its length
_NUMBERS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")
_MERGE = "tag:yaml.org,2002:merge"
_JSON_TOKEN = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"|[{}\[\]:,]|[^\s{}\[\]:,"]+')

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

    def moved(self, old: tuple[str, ...], new: tuple[str, ...]) -> Document:
        """The document with what stands at one key path at another one, which keeps its place in the file."""

        def path(key: KeyPath) -> KeyPath:
            return (*new, *key[len(old) :]) if key[: len(old)] == old else key

        return replace(
            self,
            value=_put(_without(self.value, old), new, _at(self.value, old)),
            keys={path(key): mark for key, mark in self.keys.items()},
            values={path(key): mark for key, mark in self.values.items()},
            overridden=frozenset(path(key) for key in self.overridden),
        )


def _at(tree: object, path: KeyPath) -> object:
    for key in path:
        tree = tree.get(key) if isinstance(tree, dict) else None
    return tree


def _without(tree: object, path: KeyPath) -> object:
    if not isinstance(tree, dict):
        return tree
    if len(path) == 1:
        return {key: value for key, value in tree.items() if key != path[0]}
    return {**tree, path[0]: _without(tree.get(path[0]), path[1:])}


def _put(tree: object, path: KeyPath, value: object) -> object:
    if not path:
        return value
    inside = tree if isinstance(tree, dict) else {}
    return {**inside, path[0]: _put(inside.get(path[0]), path[1:], value)}


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
        raise ConfigError(_unreadable(f"there is no file {path}", path, _beside(path))) from None
    except OSError as error:
        raise ConfigError(_unreadable(f"cannot read {path}: {error.strerror}", path, "check the file")) from None
    if len(raw) > MAX_BYTES:
        hint = "is it a data file? Data belongs into a dataset registry"
        raise ConfigError(_unreadable(f"larger than {MAX_BYTES:,} bytes", path, hint))
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(_unreadable(f"not UTF-8 text (byte {error.start})", path, "save it as UTF-8")) from None
    return (path.suffix == ".json" and _json(text, path)) or parse(text, path, yaml11=yaml11)


def _beside(path: Path) -> str:
    """What to name instead of a file that is not there: one like it in its folder, where there is one."""
    names: list[str] = []
    with contextlib.suppress(OSError):
        names = [each.name for each in path.parent.iterdir() if each.suffix in (".yaml", ".yml", ".json")]
    close = difflib.get_close_matches(path.name, names, 1)
    return f"did you mean {path.with_name(close[0])}?" if close else "check the path, or see `cpt configs list`"


def _json(text: str, path: Path) -> Document | None:
    """JSON as JSON's readers have it; YAML knows other escapes, and would let commas and comments pass. None where
    `parse` has the better word: an empty file, JSON lines, a number too long, or nesting too deep.

    Raises:
        ConfigError: not JSON, too many values, a key given twice, or text that is none.
    """
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        if not text.strip() or error.msg == "Extra data":
            return None
        hint = "JSON takes no comments and no comma after the last item"
        where = f"{path}:{error.lineno}:{error.colno}"
        raise ConfigError(Problem(f"not valid JSON: {error.msg}", where, hint, "yaml-syntax")) from None
    except (ValueError, RecursionError):
        return None
    places = _JsonPlaces(text, path)
    if places.problems:
        raise ConfigError(*places.problems)
    return Document(path, text, value, places.keys, places.values)


class _JsonPlaces:
    """Where the keys and values of a valid JSON text stand, and what is wrong with it all the same."""

    def __init__(self, text: str, path: Path) -> None:
        self.path = path
        self.keys: dict[KeyPath, Mark] = {}
        self.values: dict[KeyPath, Mark] = {}
        self.problems: list[Problem] = []
        self._lines = [0, *(match.end() for match in re.finditer("\n", text))]
        self._open: list[str] = []
        self._at: list[str | int | None] = []  # of the value to come; None where a key is to come
        for match in _JSON_TOKEN.finditer(text):
            self._take(match[0], match.start())
            if len(self._open) > MAX_DEPTH or len(self.values) > MAX_NODES:
                what = "nested too deeply" if len(self._open) > MAX_DEPTH else "too many values"
                self.problems = [self._problem(what, match.start())]
                return

    def _take(self, token: str, position: int) -> None:
        if token in "}]":
            self._open.pop()
            self._at.pop()
        elif token == ",":
            last = self._at[-1]
            self._at[-1] = last + 1 if isinstance(last, int) else None
        elif self._at and self._at[-1] is None:
            self._key(json.loads(token), position)
        elif token != ":":
            self.values[self._path()] = self._mark(position)
            if token in "{[":
                self._open.append(token)
                self._at.append(0 if token == "[" else None)
            else:
                self._scalar(token, position)

    def _key(self, key: str, position: int) -> None:
        self._at[-1] = key
        self._scalar(json.dumps(key), position)
        if first := self.keys.get(self._path()):
            what = f"key '{key}' stands here and in line {first.line}"
            self.problems.append(self._problem(what, position, "remove one of the two", "duplicate-key"))
        self.keys[self._path()] = self._mark(position)

    def _scalar(self, token: str, position: int) -> None:
        if "\\u" in token and any("\ud800" <= character <= "\udfff" for character in json.loads(token)):
            self.problems.append(self._problem("half of a character (a lone surrogate)", position))
        if token.lstrip("-") in ("NaN", "Infinity"):
            self.problems.append(self._problem(f"not valid JSON: {token}", position))
        if token.lstrip("-").isdigit() and len(token) > MAX_BITS // 4 and int(token).bit_length() > MAX_BITS:
            self.problems.append(self._problem("a number of that size is none", position))

    def _path(self) -> KeyPath:
        return tuple(key for key in self._at if key is not None)

    def _mark(self, position: int) -> Mark:
        line = bisect.bisect_right(self._lines, position)
        return Mark(line, position - self._lines[line - 1] + 1)

    def _problem(self, what: str, position: int, hint: str = "", rule: str = "yaml-syntax") -> Problem:
        mark = self._mark(position)
        return Problem(what, f"{self.path}:{mark.line}:{mark.column}", hint or "look at this line", rule)


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
        self._count(node)
        if len(at) > MAX_DEPTH:  # only an anchor inside itself gets here
            raise yaml.MarkedYAMLError(problem="nested too deeply", problem_mark=node.start_mark)
        self.values[at] = Mark.of(node.start_mark)
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, at)
        if isinstance(node, yaml.SequenceNode):
            return [self.build(item, (*at, index)) for index, item in enumerate(node.value)]
        if node.tag in _NUMBERS and len(node.value) > MAX_DIGITS:
            what = f"a number of {len(node.value):,} characters; put text in quotes"
            raise yaml.MarkedYAMLError(problem=what, problem_mark=node.start_mark)
        try:
            value: object = self.loader.construct_object(node)
        except (ValueError, OverflowError) as error:  # 2024-13-45, or an integer of 5,000 digits
            raise yaml.MarkedYAMLError(problem=str(error), problem_mark=node.start_mark) from None
        except (AttributeError, LookupError):  # !!timestamp x, !!bool x
            what = f"{node.value[:60]!r} is no {node.tag.rpartition(':')[2]}"
            raise yaml.MarkedYAMLError(problem=what, problem_mark=node.start_mark) from None
        if isinstance(value, int) and value.bit_length() > MAX_BITS:  # neither a float nor text any more
            raise yaml.MarkedYAMLError(problem="a number of that size is none", problem_mark=node.start_mark)
        return value

    def _mapping(self, node: yaml.MappingNode, at: KeyPath) -> dict[str, object]:
        built: dict[str, object] = {}
        written: set[KeyPath] = set()
        for key_node, value_node, merged in self._pairs(node):
            mark = Mark.of(key_node.start_mark)
            if not isinstance(key_node, yaml.ScalarNode):
                raise yaml.MarkedYAMLError(problem="a key must be plain text", problem_mark=key_node.start_mark)
            key = str(key_node.value)
            if (*at, key) in written:
                first = self.keys[(*at, key)]
                where = f"{self.path}:{mark.line}:{mark.column}"
                what = f"key '{key}' stands here and in line {first.line}"
                self.problems.append(Problem(what, where, "remove one of the two", "duplicate-key"))
            if not merged:
                written.add((*at, key))
            self.keys[(*at, key)] = mark
            built[key] = self.build(value_node, (*at, key))
        return built

    def _pairs(self, node: yaml.MappingNode, depth: int = 0) -> list[tuple[yaml.Node, yaml.Node, bool]]:
        """Keys and values, with what `<<` merges in first, so that own keys win. PyYAML's own `flatten_mapping` copies
        before anybody can count.
        """
        merged: list[tuple[yaml.Node, yaml.Node, bool]] = []
        for key, value in node.value:
            if key.tag == _MERGE:
                for source in reversed(self._sources(value)):
                    self._count(value, depth)
                    merged += ((inner, item, True) for inner, item, _ in self._pairs(source, depth + 1))
                    self.nodes += len(source.value)
        return merged + [(key, value, False) for key, value in node.value if key.tag != _MERGE]

    def _sources(self, value: yaml.Node) -> list[yaml.MappingNode]:
        sources = value.value if isinstance(value, yaml.SequenceNode) else [value]
        if not all(isinstance(source, yaml.MappingNode) for source in sources):
            raise yaml.MarkedYAMLError(problem="`<<` takes a mapping or a list of them", problem_mark=value.start_mark)
        return list(sources)

    def _count(self, node: yaml.Node, merges: int = 0) -> None:
        self.nodes += 1
        if merges > MAX_MERGES:
            raise yaml.MarkedYAMLError(problem="`<<` inside `<<`, too deeply", problem_mark=node.start_mark)
        if self.nodes > MAX_NODES:
            raise yaml.MarkedYAMLError(problem="too many values (anchors expanded)", problem_mark=node.start_mark)


def dump(value: object) -> str:
    """YAML that reads back as the same value in PyYAML, keys in the order given."""
    return yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=10_000)
