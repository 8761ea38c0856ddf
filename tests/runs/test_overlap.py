"""How much of what is evaluated on was trained on, by a storage with staged files and a registry with real slices."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from cpt_launcher.config.launcher import Evaluation
from cpt_launcher.layout import Layout
from cpt_launcher.plan import heldout
from cpt_launcher.plan.heldout import Counted
from cpt_launcher.runs.overlap import trained_share, words
from cpt_launcher.staging import manifest
from cpt_launcher.staging.dataset import Copy
from cpt_launcher.staging.stage import stage

SPLIT = heldout.split("c", {"file_name": "c.jsonl"}, Evaluation(percent=5), Counted(135), 42)
LAST = heldout.split("t", {"file_name": "t.txt"}, Evaluation(documents=7, tail=True), None, 42)
assert SPLIT is not None
assert LAST is not None
REGISTRY: dict[str, Mapping[str, object]] = {
    **SPLIT.entries,
    **LAST.entries,
    "c": {"file_name": "c.jsonl"},
    "copy": {"file_name": "copy.jsonl"},
    "other": {"file_name": "other.jsonl"},
    "shards": {"file_name": "shards"},
    "t": {"file_name": "t.txt"},
    "half": {"file_name": "c.jsonl", "split": "train[:50%]"},
    "rest": {"file_name": "c.jsonl", "split": "train[50%:]"},
    "hub": {"hf_hub_url": "some/corpus"},
    "hub-end": {"hf_hub_url": "some/corpus", "split": "train[90%:]"},
    "hub-start": {"hf_hub_url": "some/corpus", "split": "train[:90%]"},
    "gone": {"file_name": "gone.jsonl"},
}
TRAINED, HELD_OUT = SPLIT.names


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    """`copy` has the bytes of `c`; one of the two shards has them too."""
    layout = Layout(tmp_path / "storage", "first")
    layout.storage.mkdir()
    put(layout, "c.jsonl", 135, "c")
    put(layout, "copy.jsonl", 135, "c")
    put(layout, "other.jsonl", 45, "o")
    put(layout, "shards/0.jsonl", 135, "c")
    put(layout, "shards/1.jsonl", 15, "s")
    put(layout, "t.txt", 20, "t")
    return layout


def put(layout: Layout, name: str, documents: int, text: str) -> None:
    source = layout.storage.parent / "source" / name
    source.parent.mkdir(parents=True, exist_ok=True)
    source.write_text(f'{{"text": "{text}"}}\n' * documents)
    (layout.storage / name).parent.mkdir(exist_ok=True)
    stage([Copy(str(source), layout.storage / name, "text")], {}, layout.storage, report=lambda _: None)


@pytest.mark.parametrize(
    ("trained", "evaluated", "expected"),
    [
        ([TRAINED], [HELD_OUT], 0),
        ([TRAINED], ["c"], 128 / 135),
        ([TRAINED], [TRAINED], 1),
        (["c"], [HELD_OUT], 1),
        (["half"], ["rest"], 0),
        (["half", "rest"], ["c"], 1),
        (["half"], ["c"], 68 / 135),
        ([TRAINED], ["other"], 0),
        ([TRAINED], ["copy"], 1),
        ([TRAINED], ["shards"], 0.9),
        ([TRAINED], ["c", "other"], 128 / 180),
        ([LAST.names[0]], [LAST.names[1]], 0),
        ([LAST.names[0]], ["t"], pytest.approx(1, abs=1e-6)),
        (["hub-start"], ["hub-end"], 0),
        (["hub"], ["hub-end"], 1),
        (["hub"], ["c"], None),
        ([TRAINED], ["hub"], None),
        ([TRAINED], ["gone"], None),
        (["removed since"], ["c"], None),
    ],
)
def test_the_share(layout: Layout, trained: list[str], evaluated: list[str], expected: float | None) -> None:
    recorded = {name: record.sha256 for name, record in manifest.read(layout).items()}
    assert trained_share(REGISTRY, layout, recorded, trained, evaluated) == expected


def test_of_the_first_documents_alone(layout: Layout) -> None:
    """`max_samples` is of each entry, where it is trained on and where it is evaluated on."""
    recorded = {name: record.sha256 for name, record in manifest.read(layout).items()}
    assert trained_share(REGISTRY, layout, recorded, ["half"], ["c"], 10) == 1
    assert trained_share(REGISTRY, layout, recorded, ["rest"], ["c"], 10) == 0


def test_data_that_was_replaced_after_the_training(layout: Layout) -> None:
    recorded = {name: record.sha256 for name, record in manifest.read(layout).items()}
    put(layout, "c.jsonl", 140, "new")
    assert trained_share(REGISTRY, layout, recorded, [TRAINED], [HELD_OUT]) is None
    assert trained_share(REGISTRY, layout, recorded, [TRAINED], ["copy"]) == 1


@pytest.mark.parametrize(
    ("share", "said"),
    [
        (0, "1,024 held-out tokens (a)"),
        (0.948, "1,024 tokens of a, 95% of which are in the run's training data"),
        (1, "1,024 tokens of a, all of which are in the run's training data"),
        (0.999, "1,024 tokens of a, over 99% of which are in the run's training data"),
        (0.001, "1,024 tokens of a, under 1% of which are in the run's training data"),
        (None, "1,024 tokens of a (whether the run was trained on them is not known)"),
    ],
)
def test_held_out_is_what_it_was_not_trained_on(share: float | None, said: str) -> None:
    assert words(1024, "a", share) == said
