"""Imports go one way, and each effect has one home."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from .conftest import REPOSITORY

SOURCE = REPOSITORY / "src" / "cpt_launcher"
# Each module and those of ours it may import. A new module is entered here.
MAY_IMPORT: dict[str, set[str]] = {
    "__init__": set(),
    "after_import": set(),
    "build_lock": set(),
    "child": set(),
    "config": set(),
    "cpu_workers": set(),
    "escapes": set(),
    "explain": set(),
    "jsontext": set(),
    "layout": set(),
    "mlflow_address": set(),
    "names": set(),
    "ray_cluster": set(),
    "sandbox": set(),
    "schema": set(),
    "suggest": set(),
    "urls": set(),
    "wording": set(),
    "derive": {"schema", "wording"},
    "editor": {"config", "schema"},
    "errors": {"urls"},
    "forecast": {"schema"},
    "secrets": {"urls"},
    "assets": {"errors"},
    "findings": {"errors", "escapes"},
    "launch": {"child", "errors"},
    "model_files": {"errors"},
    "progress": {"forecast", "jsontext"},
    "records": {"errors", "wording"},
    "safe_open": {"errors"},
    "shape": {"errors"},
    "source": {"errors", "names", "urls"},
    "tracker": {"errors", "mlflow_address", "urls"},
    "usage": {"config", "errors", "schema", "suggest"},
    "yamlfile": {"errors"},
    "arguments": {"errors", "findings", "schema", "suggest"},
    "check_paths": {"assets", "errors", "findings"},
    "check_secrets": {"errors", "secrets", "urls", "yamlfile"},
    "demo": {"assets"},
    "disk": {"errors", "jsontext", "safe_open"},
    "guard": {"launch"},
    "job_image": {"assets", "errors", "source"},
    "memory": {"shape"},
    "mlflow_page": {"child", "errors", "launch"},
    "render": {"assets", "config", "errors", "layout", "sandbox", "yamlfile"},
    "strict": {"errors", "findings"},
    "subtask": {"errors", "explain", "launch", "secrets"},
    "texts": {"records"},
    "token_count": {"after_import", "jsontext", "safe_open", "wording"},
    "values": {"errors", "suggest", "yamlfile"},
    "check_arguments": {"arguments", "findings", "suggest"},
    "check_deepspeed": {"arguments", "errors", "findings", "schema", "suggest", "yamlfile"},
    "corpus": {"errors", "records", "texts"},
    "dataset": {"assets", "errors", "names", "source", "suggest", "texts", "urls", "yamlfile"},
    "end_of_text": {"arguments", "assets", "findings", "jsontext"},
    "exporting": {"subtask"},
    "fetch": {"disk", "errors", "layout", "model_files"},
    "manifest": {"disk", "errors", "jsontext", "layout"},
    "pace": {"memory"},
    "ray_worker": {"after_import", "ray_cluster", "safe_open", "token_count"},
    "reader": {"assets", "check_secrets", "config", "errors", "names", "schema", "secrets", "values", "yamlfile"},
    "tokenizing": {"subtask", "token_count"},
    "check_trust": {"arguments", "assets", "dataset", "errors", "findings", "model_files", "yamlfile"},
    "checkpoints": {"disk", "errors", "jsontext", "ray_worker", "safe_open", "wording"},
    "heldout": {"config", "dataset", "errors", "layout", "manifest"},
    "hook": {"ray_worker"},
    "places": {"dataset", "errors", "layout", "names"},
    "reading": {"corpus", "errors", "names", "records", "source", "texts"},
    "registry": {"dataset", "disk", "errors", "layout"},
    "tokenized": {"dataset", "layout", "manifest", "schema"},
    "check_data": {
        "arguments", "assets", "corpus", "dataset", "errors", "findings", "names", "reading", "records", "source",
        "suggest", "texts", "wording", "yamlfile",
    },
    "overlap": {"dataset", "heldout", "layout", "manifest"},
    "plan": {
        "assets", "check_secrets", "child", "config", "dataset", "derive", "errors", "heldout", "layout", "manifest",
        "mlflow_address", "places", "render", "schema", "secrets", "tokenized", "urls", "yamlfile",
    },
    "results": {"checkpoints", "jsontext"},
    "transfer": {"corpus", "dataset", "disk", "errors", "names", "reading", "records", "source", "texts", "urls"},
    "amount": {"dataset", "errors", "heldout", "manifest", "plan", "reading", "records"},
    "bundle": {
        "assets", "config", "dataset", "disk", "errors", "layout", "manifest", "names", "plan", "reader", "yamlfile",
    },
    "footprint": {"plan", "schema"},
    "nodes": {"errors", "plan", "wording"},
    "record": {"disk", "errors", "jsontext", "layout", "plan"},
    "stage": {
        "corpus", "dataset", "disk", "errors", "layout", "manifest", "names", "places", "registry", "source", "texts",
        "transfer", "urls",
    },
    "validate": {
        "arguments", "assets", "check_arguments", "check_data", "check_deepspeed", "check_paths", "check_secrets",
        "check_trust", "config", "dataset", "end_of_text", "errors", "findings", "layout", "plan", "reader", "schema",
        "strict", "suggest", "yamlfile",
    },
    "watch": {"checkpoints", "disk", "errors", "explain", "plan", "progress", "secrets"},
    "cluster": {"child", "errors", "nodes", "plan"},
    "history": {"assets", "errors", "layout", "progress", "reader", "record"},
    "job_anyscale": {"bundle", "errors", "job_image", "launch", "yamlfile"},
    "job_ray": {"bundle", "errors", "launch"},
    "resumption": {
        "checkpoints", "config", "errors", "layout", "plan", "ray_worker", "reader", "record", "schema", "yamlfile",
    },
    "sizing": {"amount", "errors", "footprint", "memory", "pace", "plan", "shape"},
    "export": {
        "assets", "checkpoints", "child", "disk", "errors", "exporting", "footprint", "history", "jsontext", "layout",
        "record", "subtask", "yamlfile",
    },
    "plots": {"history"},
    "preflight": {
        "build_lock", "cluster", "disk", "errors", "fetch", "footprint", "model_files", "nodes", "plan", "progress",
        "record", "sizing", "tracker",
    },
    "attempt": {
        "build_lock", "checkpoints", "cluster", "disk", "errors", "explain", "hook", "launch", "plan", "preflight",
        "progress", "results", "resumption", "secrets", "stage", "watch",
    },
    "closing": {
        "disk", "errors", "history", "layout", "plan", "plots", "progress", "ray_worker", "record", "secrets",
        "token_count", "tracker", "urls",
    },
    "doctor": {"cluster", "disk", "errors", "nodes", "preflight", "progress", "record"},
    "evaluation": {
        "assets", "checkpoints", "child", "dataset", "disk", "errors", "export", "exporting", "history", "overlap",
        "plan", "progress", "subtask", "suggest",
    },
    "run": {
        "attempt", "checkpoints", "closing", "cluster", "config", "disk", "errors", "explain", "launch", "layout",
        "manifest", "mlflow_address", "plan", "preflight", "record", "results", "resumption", "secrets", "stage",
    },
    "terminal": {
        "checkpoints", "dataset", "disk", "doctor", "errors", "escapes", "evaluation", "export", "findings",
        "history", "jsontext", "overlap", "plan", "plots", "progress", "record", "records", "results", "stage",
        "token_count", "wording",
    },
    "cli_check": {"terminal", "validate", "yamlfile"},
    "cli_models": {
        "assets", "errors", "evaluation", "export", "history", "launch", "mlflow_page", "terminal", "yamlfile",
    },
    "cli_runs": {"checkpoints", "doctor", "errors", "history", "terminal"},
    "live": {"attempt", "progress", "terminal"},
    "pretokenize": {
        "attempt", "child", "config", "corpus", "dataset", "disk", "errors", "plan", "preflight", "run", "subtask",
        "token_count",
    },
    "cli_job": {"assets", "bundle", "cli_check", "errors", "job_anyscale", "job_ray", "launch", "terminal"},
    "cli_plan": {"cli_check", "errors", "memory", "pace", "plan", "progress", "reader", "sizing", "terminal"},
    "cli": {
        "__init__", "assets", "cli_check", "cli_job", "cli_models", "cli_plan", "cli_runs", "cluster", "config",
        "demo", "disk", "editor", "errors", "fetch", "findings", "history", "launch", "live", "plan", "pretokenize",
        "reader", "resumption", "run", "schema", "stage", "terminal", "usage", "validate",
    },
    "__main__": {"cli"},
}  # fmt: skip
HEAVY = {
    "torch",
    "ray",
    "transformers",
    "tokenizers",
    "mlflow",
    "llamafactory",
    "deepspeed",
    "datasets",
    "fsspec",
    "huggingface_hub",
}
WRITES = {"write_text", "write_bytes", "mkdir", "rename", "replace", "unlink", "symlink_to", "touch", "chmod"}
PRINTS = {"cli", "cli_job", "cli_models", "cli_plan", "cli_runs", "terminal"}
PROCESSES = {"subprocess", "signal"}
STARTS = {"cluster", "launch", "ray_cluster"}


def imports(tree: ast.AST) -> set[str]:
    """Dotted names of all that is imported."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def violations(name: str, source: str) -> list[str]:
    """What a module does that its place in the tables does not allow."""
    tree = ast.parse(source)
    ours = {dotted.split(".")[1] for dotted in imports(tree) if dotted.startswith("cpt_launcher.")}
    ours = {module if module in MAY_IMPORT else "__init__" for module in ours}
    found = [f"imports {module}" for module in sorted(ours - MAY_IMPORT[name])]
    top = ast.Module([node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)], [])
    found += [f"imports {module} at the top" for module in sorted({n.split(".")[0] for n in imports(top)} & HEAVY)]
    if name not in STARTS:
        found += [f"imports {module}" for module in sorted(imports(tree) & PROCESSES)]
    for node in ast.walk(tree):
        called = node.func if isinstance(node, ast.Call) else None
        if name not in PRINTS and isinstance(called, ast.Name) and called.id == "print":
            found.append("prints")
        if name not in PRINTS and isinstance(called, ast.Attribute) and called.attr == "echo":
            found.append("prints")
        if (
            name not in {"disk", "ray_worker", "ray_cluster", "exporting", "token_count", "tokenizing"}
            and isinstance(called, ast.Attribute)
            and _writes(called, node)
        ):
            found.append(f"writes: {called.attr}")
    return found


def _writes(called: ast.Attribute, call: ast.AST) -> bool:
    """A method of pathlib that changes the disk; other things' `replace` take more than one argument."""
    assert isinstance(call, ast.Call)
    own = isinstance(called.value, ast.Name) and called.value.id == "disk"
    return (
        called.attr in WRITES
        and not own
        and not (called.attr == "replace" and len(call.args) + len(call.keywords) != 1)
    )


@pytest.mark.parametrize("path", sorted(SOURCE.glob("*.py")), ids=lambda path: path.stem)
def test_each_module_keeps_to_its_place(path: Path) -> None:
    assert violations(path.stem, path.read_text()) == []


def test_the_table_has_no_cycle() -> None:
    done: set[str] = set()
    while ready := {name for name, uses in MAY_IMPORT.items() if name not in done and uses <= done}:
        done |= ready
    assert done == set(MAY_IMPORT)


@pytest.mark.parametrize(
    ("name", "source", "expected"),
    [
        ("plan", "from cpt_launcher import launch", ["imports launch"]),
        ("config", "from cpt_launcher.stage import stage", ["imports stage"]),
        ("plan", "import torch", ["imports torch at the top"]),
        ("plan", "import subprocess", ["imports subprocess"]),
        ("plan", "print('x')", ["prints"]),
        ("plan", "typer.echo('x')", ["prints"]),
        ("plan", "path.write_text('x')", ["writes: write_text"]),
        ("plan", "part.replace(target)", ["writes: replace"]),
        ("plan", "text.replace('a', 'b')", []),
        ("demo", "def f():\n    import torch", []),
    ],
)
def test_a_violation_is_seen(name: str, source: str, expected: list[str]) -> None:
    assert violations(name, source) == expected


def test_modules_stay_small() -> None:
    sizes = {path.stem: len(path.read_text().splitlines()) for path in SOURCE.glob("*.py")}
    assert {name: size for name, size in sizes.items() if size > 400} == {}
