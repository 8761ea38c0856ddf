"""Tokens of a run, by what was staged or by reading what lies here."""

from __future__ import annotations

from pathlib import Path

import pytest

from cpt_launcher.config import read
from cpt_launcher.plan import amount
from cpt_launcher.plan.amount import Amount
from cpt_launcher.plan.plan import plan_run


def found(workspace: Path, *overrides: str, tokens: int | None = None) -> Amount:
    plan = plan_run(read.read(workspace / "my.yaml", list(overrides)), {})
    return amount.of(plan, tokens)


EACH = 16 // 4 + 1  # "Call me Ishmael." and an end-of-text token, of 100 documents


@pytest.mark.parametrize(
    ("overrides", "trained", "held_out"),
    [
        ((), 100, 0),
        (("train.max_samples=10",), 10, 0),
        (("eval.share=0.05",), 95, 5),
        (("eval.documents=30",), 70, 30),
        (("eval.documents=30", "train.max_samples=20"), 20, 20),
        (("train.val_size=0.1",), 90, 10),
    ],
)
def test_documents_that_are_used(workspace: Path, overrides: tuple[str, ...], trained: int, held_out: int) -> None:
    assert found(workspace, *overrides) == Amount(trained * EACH, held_out * EACH)


def test_a_dataset_of_its_own_is_not_trained_on(workspace: Path) -> None:
    folder = workspace / "dataset-configs"
    (folder / "test.jsonl").write_text('{"text": "Call me Ishmael."}\n' * 7)
    entries = {name: f'{{"file_name": "{name}.jsonl", "columns": {{"prompt": "text"}}}}' for name in ("corpus", "test")}
    registry = ", ".join(f'"{name}": {entry}' for name, entry in entries.items())
    (folder / "dataset_info.json").write_text(f"{{{registry}}}")
    assert found(workspace, "eval.dataset=test") == Amount(100 * EACH, 7 * EACH)


def test_a_folder_is_the_sum_of_its_files(workspace: Path) -> None:
    folder = workspace / "dataset-configs" / "shards"
    folder.mkdir()
    for number in range(3):
        (folder / f"{number}.jsonl").write_text('{"text": "Call me Ishmael."}\n' * 10)
    entry = '{"corpus": {"source": "shards", "file_name": "shards", "columns": {"prompt": "text"}}}'
    (folder.parent / "dataset_info.json").write_text(entry)
    assert found(workspace) == Amount(30 * EACH, 0)


def test_tokens_that_the_caller_knows_are_of_the_whole_corpus(workspace: Path) -> None:
    assert found(workspace, tokens=1000) == Amount(1000, 0)
    assert found(workspace, "eval.share=0.05", tokens=1000) == Amount(950, 50)


def test_what_cannot_be_read_is_not_known(workspace: Path) -> None:
    entry = '{"corpus": {"source": "s3://bucket/corpus.jsonl", "columns": {"prompt": "text"}}}'
    (workspace / "dataset-configs" / "dataset_info.json").write_text(entry)
    assert found(workspace) == Amount(None, 0)


def test_large_data_goes_by_its_size(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(amount, "READ", 100)
    size = (workspace / "dataset-configs" / "corpus.jsonl").stat().st_size
    assert found(workspace) == Amount(size // 4, 0)
    assert found(workspace, "train.max_samples=5").trained is None
