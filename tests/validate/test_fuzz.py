"""Whatever stands in a file, `cpt validate` ends in 0, 2 or 3 within a second, never in a traceback."""

import json
import tempfile
import time
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cpt_launcher.config.arguments import load
from cpt_launcher.validate import files as validate
from cpt_launcher.validate import report as findings
from cpt_launcher.validate.files import Options

from ..conftest import REPOSITORY

SEEDS = [
    *(yaml.safe_load((REPOSITORY / "configs" / name).read_text()) for name in ("gemma3_4b.yaml", "tiny_cpu.yaml")),
    *(json.loads(path.read_text()) for path in sorted((REPOSITORY / "deepspeed-configs").glob("*.json"))),
    json.loads((REPOSITORY / "dataset-configs" / "dataset_info.json").read_text()),
    {
        "stage": "pt",
        "ray_run_name": "r",
        "resources_per_worker": {"GPU": 1},
        "output_dir": "/o",
        "learning_rate": "1e-4",
    },
]
NAMES = sorted(
    [*load().arguments, "name", "storage", "resources", "gpus", "cpus", "train", "env", "secrets", "columns"]
)
EXTREMES = (
    10**400, -(10**30), 1e308, "1e-4", "${X}", "~", "~nosuch/x", "\x00", "a" * 5000, "../" * 2000, "<x>", "s3://b",
)  # fmt: skip
SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=30), st.dates(), st.sampled_from(NAMES),
    st.sampled_from(EXTREMES),
)  # fmt: skip
KEYS = st.sampled_from(NAMES) | st.text(max_size=9)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=8,
)


def places(tree: object, at: tuple[object, ...] = ()) -> list[tuple[object, ...]]:
    """The paths of all values in a tree."""
    pairs = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    return [at, *(place for key, item in pairs for place in places(item, (*at, key)))]


def changed(tree: object, at: tuple[object, ...], new: object, drop: bool) -> object:
    """A copy of the tree with one value replaced, or dropped with its key."""
    if not at:
        return new
    copied = dict(tree) if isinstance(tree, dict) else list(tree)  # type: ignore[call-overload]
    if drop and len(at) == 1:
        del copied[at[0]]
    else:
        copied[at[0]] = changed(copied[at[0]], at[1:], new, drop)
    return copied


@st.composite
def files(draw: st.DrawFn) -> bytes:
    """A config after some damage, to its tree and then perhaps to its bytes."""
    tree = draw(st.sampled_from(SEEDS))
    for _ in range(draw(st.integers(1, 4))):
        tree = changed(tree, draw(st.sampled_from(places(tree))), draw(VALUES), draw(st.booleans()))
    raw = yaml.safe_dump(tree, allow_unicode=True, sort_keys=False).encode("utf-8", "surrogatepass")
    if draw(st.integers(0, 3)) == 0:
        cut = draw(st.integers(0, len(raw)))
        raw = (
            raw[:cut]
            + draw(st.binary(max_size=6) | st.sampled_from([b"\t", b"&a [*a]", b"[" * 3000, b"{", b"- "]))
            + raw[cut:]
        )
    return raw


def survives(raw: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "x.yaml")
        path.write_bytes(raw)
        began = time.process_time()
        report = validate.validate([path], Options(data=False, environ={"X": "y"}))
        assert time.process_time() - began < 1
        assert findings.exit_code(report.findings, warnings_as_errors=False) in (0, 2, 3)
        findings.as_text(report.findings)
        findings.as_github(report.findings)
        json.loads(findings.as_json(report.findings, report.notes))


COMMON = {"deadline": None, "suppress_health_check": list(HealthCheck), "derandomize": True, "database": None}


@settings(max_examples=300, **COMMON)
@given(files())
def test_damaged_files(raw: bytes) -> None:
    survives(raw)


@pytest.mark.fuzz
@settings(max_examples=10_000, **COMMON)
@given(files())
def test_ten_thousand_damaged_files(raw: bytes) -> None:
    survives(raw)
