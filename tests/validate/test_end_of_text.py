"""Whether a model's tokenizer and its configs agree on the end of a text, by their files; held against transformers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from cpt_launcher.validate import end_of_text

from ..conftest import Outcome

Cpt = Callable[..., Outcome]
ADDED = [
    {"id": number, "content": token} for number, token in enumerate(("<|endoftext|>", "<|im_start|>", "<|im_end|>"))
]


@pytest.fixture
def model(workspace: Path) -> Callable[..., Path]:
    """A model's folder with the given JSON files, and a config that names it."""

    def make(**files: object) -> Path:
        folder = workspace / "model"
        folder.mkdir(exist_ok=True)
        for name, value in files.items():
            (folder / f"{name}.json").write_text(json.dumps(value))
        return folder

    return make


IN_JSON: dict[str, object] = {"tokenizer_config": {"eos_token": "<|im_start|>"}, "tokenizer": {"added_tokens": ADDED}}
FILES: dict[str, dict[str, object]] = {
    "in the tokenizer's config": {
        "tokenizer_config": {"eos_token": "<|im_start|>", "added_tokens_decoder": {"1": {"content": "<|im_start|>"}}},
    },
    "in tokenizer.json": IN_JSON,
    "as a mapping": {**IN_JSON, "tokenizer_config": {"eos_token": {"content": "<|im_start|>"}}},
    "in the vocabulary": {**IN_JSON, "tokenizer": {"model": {"vocab": {"<|im_start|>": 1}}}},
    "in the special tokens": {
        "special_tokens_map": {"eos_token": "<|im_start|>"},
        "tokenizer": {"added_tokens": ADDED},
    },
}


@pytest.mark.parametrize("where", FILES)
def test_documents_would_end_in_another_token(cpt: Cpt, model: Callable[..., Path], where: str) -> None:
    folder = model(config={"eos_token_id": 2}, **FILES[where])
    done = cpt("validate", "my.yaml", "model=./model")
    assert done.code == 0, done.err
    assert "warning[template-eos]: documents would end in the tokenizer's <|im_start|> (id 1)" in done.out
    assert "eos_token_id of config.json has 2" in done.out
    assert str(folder / "tokenizer_config.json") in done.out
    model(generation_config={"eos_token_id": [2, 0]})
    assert "config.json has 2, generation_config.json has [2, 0]" in cpt("validate", "my.yaml", "model=./model").out


@pytest.mark.parametrize(
    "files",
    [
        {"config": {"eos_token_id": 1}},
        {"config": {"eos_token_id": [2, 1]}},
        {"config": {"text_config": {"eos_token_id": 1}}},
        {"config": {"eos_token_id": 2}, "generation_config": {"eos_token_id": [2, 1]}},
        {"config": {}},
        {"config": []},
        {"config": {"eos_token_id": 2}, "tokenizer_config": {"eos_token": "of no number"}},
        {"config": {"eos_token_id": 2}, "tokenizer_config": {"eos_token": None}},
        {"config": {"eos_token_id": 2}, "tokenizer_config": "no mapping"},
    ],
)
def test_where_they_agree_or_do_not_say(cpt: Cpt, model: Callable[..., Path], files: dict[str, object]) -> None:
    model(**{**FILES["in tokenizer.json"], **files})
    assert "template-eos" not in cpt("validate", "my.yaml", "model=./model").out


def test_a_template_with_an_end_of_its_own_is_warned_of_once(cpt: Cpt, model: Callable[..., Path]) -> None:
    model(config={"eos_token_id": 2}, **FILES["in tokenizer.json"])
    said = cpt("validate", "my.yaml", "model=./model", "train.template=gemma").out
    assert said.count("template-eos") == 1
    assert "the chat's end-of-turn token" in said
    assert "template-eos" not in cpt("validate", "my.yaml", "model=./model", "train.template=llama3").out


def test_a_model_that_was_fetched(cpt: Cpt, model: Callable[..., Path], workspace: Path) -> None:
    folder = model(config={"eos_token_id": 2}, **FILES["in tokenizer.json"])
    (workspace / "storage" / "models").mkdir()
    folder.rename(workspace / "storage" / "models" / "some--model")
    assert "template-eos" in cpt("validate", "my.yaml").out


def test_the_id_is_the_one_that_transformers_finds(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    tokenizers = pytest.importorskip("tokenizers")
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0, "b": 1}, unk_token="a"))
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<end>", unk_token="a")
    tokenizer.save_pretrained(tmp_path)
    assert end_of_text.tokenizers(tmp_path) == (tokenizer.eos_token, tokenizer.eos_token_id) == ("<end>", 2)
