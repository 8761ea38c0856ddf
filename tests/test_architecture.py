"""Imports go one way between packages, and each effect has one home."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from .conftest import REPOSITORY

SOURCE = REPOSITORY / "src" / "cpt_launcher"
# Each package and those whose modules it may use; `ground` are the modules beside the packages.
MAY_USE: dict[str, set[str]] = {
    "ground": set(),
    "stack": {"ground"},
    "config": {"ground"},
    "staging": {"ground", "config"},
    "plan": {"ground", "config", "staging"},
    "validate": {"ground", "config", "staging", "plan"},
    "runs": {"ground", "stack", "config", "staging", "plan"},
    "launch": {"ground", "stack", "config", "staging", "plan", "validate", "runs"},
    "cli": {"ground", "stack", "config", "staging", "plan", "validate", "runs", "launch"},
}
HEAVY = {
    "torch", "ray", "transformers", "tokenizers", "mlflow", "llamafactory", "deepspeed", "datasets", "fsspec",
    "huggingface_hub",
}  # fmt: skip
PROCESSES = {"subprocess", "signal"}
MAKES_FILES = {"write_text", "write_bytes", "mkdir", "rename", "replace", "unlink", "symlink_to", "touch", "chmod"}
# The homes of the effects. Code in `stack` runs in Ray's workers and in processes of its own, where it has the disk
# and its own standard output.
WRITES = {"disk", "stack"}
STARTS = {"process", "launch.cluster", "stack.probe"}
PRINTS = {"cli"}
STREAMS = {"cli", "stack"}
LONGEST = 400


def name_of(path: Path) -> str:
    """`launch.run` for launch/run.py."""
    return ".".join(path.relative_to(SOURCE).with_suffix("").parts)


def package_of(name: str) -> str:
    """The package of a module; `ground` for those beside the packages."""
    head, dot, _ = name.partition(".")
    special = {"__main__": "cli", "cpu_workers": "stack"}  # each a door to what is in there
    return head if dot else special.get(head, "ground")


def imports(tree: ast.AST) -> set[str]:
    """Dotted names of all that is imported."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def used(tree: ast.AST) -> set[str]:
    """The packages of ours that are imported from."""
    dotted = {name.removeprefix("cpt_launcher.") for name in imports(tree) if name.startswith("cpt_launcher.")}
    return {head if (head := name.partition(".")[0]) in MAY_USE else "ground" for name in dotted}


def is_in(name: str, homes: set[str]) -> bool:
    """Whether a module is one of those, or in one of those packages."""
    return name in homes or package_of(name) in homes


def violations(name: str, source: str) -> list[str]:
    """What a module does that its place does not allow."""
    tree = ast.parse(source)
    package = package_of(name)
    found = [f"uses {other}" for other in sorted(used(tree) - MAY_USE[package] - {package})]
    top = ast.Module([node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)], [])
    found += [f"imports {module} at the top" for module in sorted({n.split(".")[0] for n in imports(top)} & HEAVY)]
    if not is_in(name, STARTS):
        found += [f"imports {module}" for module in sorted(imports(tree) & PROCESSES)]
    for node in ast.walk(tree):
        found += [effect for effect, homes in effects(node) if not is_in(name, homes)]
    return found


def effects(node: ast.AST) -> list[tuple[str, set[str]]]:
    """What a piece of code does to the world, and where that may be."""
    if isinstance(node, ast.Attribute) and node.attr in ("stdout", "stderr") and _is(node.value, "sys"):
        return [(f"sys.{node.attr}", STREAMS)]
    if not isinstance(node, ast.Call):
        return []
    called = node.func
    if _is(called, "print") or (isinstance(called, ast.Attribute) and called.attr == "echo"):
        return [("prints", PRINTS)]
    if isinstance(called, ast.Attribute) and _writes(called, node):
        return [(f"writes: {called.attr}", WRITES)]
    return []


def _writes(called: ast.Attribute, call: ast.Call) -> bool:
    """A method of pathlib that changes the disk; other things' `replace` take more than one argument."""
    arguments = len(call.args) + len(call.keywords)
    return called.attr in MAKES_FILES and not _is(called.value, "disk") and (called.attr != "replace" or arguments == 1)


def _is(node: ast.AST, name: str) -> bool:
    return isinstance(node, ast.Name) and node.id == name


@pytest.mark.parametrize("path", sorted(SOURCE.rglob("*.py")), ids=name_of)
def test_each_module_keeps_to_its_place(path: Path) -> None:
    assert violations(name_of(path), path.read_text()) == []


def test_packages_use_each_other_one_way() -> None:
    done: set[str] = set()
    while ready := {name for name, uses in MAY_USE.items() if name not in done and uses <= done}:
        done |= ready
    assert done == set(MAY_USE)


def test_every_package_is_in_the_table() -> None:
    packages = {path.parent.name for path in SOURCE.glob("*/__init__.py")}
    assert packages == set(MAY_USE) - {"ground"}


@pytest.mark.parametrize(
    ("name", "source", "expected"),
    [
        ("plan.plan", "from cpt_launcher.launch import run", ["uses launch"]),
        ("errors", "from cpt_launcher.staging.stage import stage", ["uses staging"]),
        ("config.read", "import cpt_launcher.cli.app", ["uses cli"]),
        ("plan.plan", "import torch", ["imports torch at the top"]),
        ("plan.plan", "import subprocess", ["imports subprocess"]),
        ("plan.plan", "print('x')", ["prints"]),
        ("plan.plan", "typer.echo('x')", ["prints"]),
        ("plan.plan", "sys.stderr.write('x')", ["sys.stderr"]),
        ("stack.worker", "print('x')", ["prints"]),
        ("plan.plan", "path.write_text('x')", ["writes: write_text"]),
        ("plan.plan", "part.replace(target)", ["writes: replace"]),
        ("plan.plan", "text.replace('a', 'b')", []),
        ("plan.plan", "from cpt_launcher.plan import memory", []),
        ("stack.demo", "def f():\n    import torch", []),
        ("stack.worker", "path.write_text('x')", []),
    ],
)
def test_a_violation_is_seen(name: str, source: str, expected: list[str]) -> None:
    assert violations(name, source) == expected


def test_modules_stay_small() -> None:
    sizes = {name_of(path): len(path.read_text().splitlines()) for path in SOURCE.rglob("*.py")}
    assert {name: size for name, size in sizes.items() if size > LONGEST} == {}
