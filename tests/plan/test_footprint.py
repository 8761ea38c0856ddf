"""Against checkpoints of the real stack: 1.2 M parameters without mixed precision."""

import json
import struct
import tracemalloc
from pathlib import Path

import pytest
import yaml

from cpt_launcher.layout import Layout
from cpt_launcher.plan import footprint
from cpt_launcher.plan.plan import Plan


def plan(model: Path, keep: int = 0, **train: object) -> Plan:
    text = yaml.safe_dump(train)
    return Plan(Path("c"), Layout(Path("/s"), "r"), text, ("x",), {}, str(model), 2, "cpu", None, keep=keep)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    numpy = pytest.importorskip("safetensors.numpy")
    import numpy as np

    numpy.save_file({"a": np.zeros((10, 100), "float32"), "b": np.zeros(500, "float16")}, tmp_path / "m.safetensors")
    return tmp_path


def test_parameters_are_counted_from_the_headers(model: Path) -> None:
    assert footprint.count_parameters(model) == 1500
    (model / "m.safetensors").write_bytes(b"\xff" * 20)
    assert footprint.count_parameters(model) is None


@pytest.mark.parametrize(
    "header",
    [
        [],
        None,
        "x",
        {"a": None},
        {"a": {}},
        {"a": {"dtype": "F32"}},
        {"a": {"dtype": ["F32"], "data_offsets": [0, 4]}},
        {"a": {"dtype": "F32", "data_offsets": [0]}},
        {"a": {"dtype": "F32", "data_offsets": ["0", "4"]}},
        {"a": {"dtype": "F32", "data_offsets": [8, 4]}},
        {"a": {"dtype": "F32", "data_offsets": [0, 10**15]}},
    ],
    ids=str,
)
def test_a_header_that_lies_counts_as_unknown(tmp_path: Path, header: object) -> None:
    raw = json.dumps(header).encode()
    (tmp_path / "m.safetensors").write_bytes(struct.pack("<Q", len(raw)) + raw + b"12345678")
    assert footprint.count_parameters(tmp_path) is None


@pytest.mark.parametrize("length", [10**9, 2**63, 50])
def test_a_header_that_claims_what_is_not_there_is_not_read(tmp_path: Path, length: int) -> None:
    path = tmp_path / "m.safetensors"
    path.write_bytes(struct.pack("<Q", length) + b"{}")
    if length == 10**9:
        with path.open("r+b") as file:
            file.truncate(2 * 10**9)  # sparse
    tracemalloc.start()
    assert footprint.count_parameters(tmp_path) is None
    assert tracemalloc.get_traced_memory()[1] < 1_000_000
    tracemalloc.stop()


@pytest.mark.parametrize(
    ("train", "keep", "count", "each"),
    [
        ({"max_steps": 40, "save_steps": 20}, 0, 2, 16 * 1500),
        ({"max_steps": 41, "save_steps": 20, "bf16": True}, 0, 3, 14 * 1500),
        ({"max_steps": 1000, "save_steps": 10, "bf16": True}, 2, 3, 14 * 1500),
        ({"max_steps": 1000, "save_steps": 10, "save_total_limit": 1}, 0, 2, 16 * 1500),
        ({"max_steps": 1000, "save_steps": 0.25, "save_only_model": True}, 0, 4, 4 * 1500),
        ({"max_steps": 100, "save_strategy": "no"}, 0, 0, 16 * 1500),
    ],
)
def test_what_is_written(model: Path, train: dict[str, object], keep: int, count: int, each: int) -> None:
    found = footprint.on_storage(plan(model, keep, **train))
    assert found is not None
    assert (found.count, found.each) == (count, each)


def test_unknown_steps_or_model_give_nothing(model: Path, tmp_path: Path) -> None:
    assert footprint.on_storage(plan(model, num_train_epochs=1)) is None
    assert footprint.on_storage(plan(tmp_path / "absent", max_steps=1)) is None
