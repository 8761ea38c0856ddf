from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from cpt_launcher.stack import tokens


class Tokenizer:
    eos_token = "<eos>"

    def __call__(self, texts: list[str], **_: object) -> dict[str, list[list[int]]]:
        return {"input_ids": [list(range(len(text.split()))) for text in texts]}


class Processor:
    """As LLaMA-Factory's: blocks of four, the rest is dropped."""

    def __init__(self) -> None:
        self.tokenizer = Tokenizer()
        self.data_args = SimpleNamespace(template="empty")

    def preprocess_dataset(self, examples: dict[str, list[str]]) -> dict[str, list[list[int]]]:
        flat = [token for row in self.tokenizer(examples["_prompt"])["input_ids"] for token in row]
        return {"input_ids": [flat[at : at + 4] for at in range(0, len(flat) // 4 * 4, 4)]}


def test_tokens_are_counted_before_and_after_packing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretrain, loader = (ModuleType(f"llamafactory.data.{name}") for name in ("processor.pretrain", "loader"))
    kind = type("Ours", (Processor,), {"preprocess_dataset": Processor.preprocess_dataset})
    pretrain.PretrainDatasetProcessor = kind  # type: ignore[attr-defined]
    own = kind()

    def preprocessed(*arguments: object, is_eval: bool = False) -> object:
        return own.preprocess_dataset({"_prompt": ["a b c", "d e f g"]})

    loader._get_preprocessed_dataset = preprocessed  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, pretrain.__name__, pretrain)
    monkeypatch.setitem(sys.modules, loader.__name__, loader)
    monkeypatch.setenv(tokens.FILE, "")
    monkeypatch.setenv(tokens.PART, "")
    file = tmp_path / "counts"
    monkeypatch.delenv("RANK", raising=False)
    tokens.install(str(file))  # Ray calls its workers' hook before it sets RANK, on every node
    monkeypatch.setenv("RANK", "4")
    assert loader._get_preprocessed_dataset() == {"input_ids": [[0, 1, 2, 0]]}
    assert not file.exists()
    monkeypatch.setenv("RANK", "0")
    made = loader._get_preprocessed_dataset()
    assert made == {"input_ids": [[0, 1, 2, 0]]}
    assert type(own.tokenizer) is Tokenizer
    loader._get_preprocessed_dataset(is_eval=True)
    total = tokens.total([*file.read_text().splitlines(), "", "{half"])
    assert total == {"documents": 2, "tokens_in": 7, "blocks": 1, "tokens": 4, "lost": 3, "end_of_text": "<eos>"}
    assert tokens.describe(total) == (
        "7 tokens in 2 documents, packed into 1 block (42.86% lost); documents end in <eos>"
    )
    assert tokens.total([json.dumps({"part": "held_out"})]) is None


def test_rows_that_are_none_are_passed_over() -> None:
    good = '{"part": "train", "documents": 1, "tokens_in": 5, "blocks": 1, "tokens": 4, "end_of_text": "<eos>"}'
    bad = ('{"part": "train"}', '{"part": "train", "documents": "x"}', "[" * 100_000, "null", '{"part": "tr')
    total = tokens.total([good, *bad])
    assert total is not None
    assert (total["documents"], total["lost"]) == (1, 1)


def test_one_is_no_plural() -> None:
    one = {"tokens_in": 1, "documents": 1, "blocks": 1, "lost": 0, "end_of_text": "<end>"}
    assert tokens.describe(one).startswith("1 token in 1 document, packed into 1 block (")
    assert tokens.describe_trained({"steps": 1, "tokens": 2_000}) == "2,000 tokens in 1 step"
