"""A model that would have transformers write or copy elsewhere is refused before it is loaded."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from cpt_launcher.staging import model_files

NAMED = [{"name": "default", "template": "x"}, {"name": "../../stray", "template": "y"}]
MAPPED = {"default": "x", "../../stray": "y"}


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("tokenizer_config.json", {"chat_template": NAMED}, "'../../stray'"),
        ("tokenizer_config.json", {"chat_template": MAPPED}, "'../../stray'"),
        ("tokenizer_config.json", {"chat_template": [{"name": ".."}]}, "'..'"),
        ("tokenizer_config.json", {"chat_template": [{"name": 1}, "x y"]}, "'x y'"),
        ("tokenizer_config.json", {"chat_template": [{"name": "a\\b"}]}, "'a"),
        ("tokenizer_config.json", {"chat_template": [{}]}, "''"),
        ("special_tokens_map.json", {"chat_template": NAMED}, "'../../stray'"),
        ("chat_template.json", {"chat_template": MAPPED}, "'../../stray'"),
        ("processor_config.json", {"chat_template": MAPPED}, "'../../stray'"),
        ("additional_chat_templates/a b.jinja", {}, "'a b'"),
        ("additional_chat_templates/..jinja", {}, "'.'"),
        ("tokenizer_config.json", {"vocab_file": "/etc/passwd"}, "vocab_file names '/etc/passwd'"),
        ("tokenizer_config.json", {"spm_file": "../../secret"}, "spm_file names"),
        ("tokenizer_config.json", {"init_inputs": ["/etc/passwd"]}, "init_inputs names"),
        ("tokenizer_config.json", [], "not a mapping"),
        ("tokenizer_config.json", "[" * 100_000, "not readable as JSON"),
        ("tokenizer_config.json", "{", "not readable as JSON"),
        ("chat_template.json", "\xff", "not readable as JSON"),
    ],
)
def test_refused(tmp_path: Path, name: str, content: object, said: str) -> None:
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content.encode("latin-1") if isinstance(content, str) else json.dumps(content).encode())
    problems = model_files.check(tmp_path)
    assert said in problems[-1].what
    assert {problem.where for problem in problems} == {str(path)}
    assert all(problem.hint for problem in problems)


def test_taken(tmp_path: Path) -> None:
    assert model_files.check(tmp_path / "absent") == []
    config = {
        "chat_template": [{"name": "default", "template": ""}, {"name": "tool_use-1.0", "template": ""}],
        "vocab_file": str(tmp_path / "tokenizer.model"),
        "merges_file": None,
        "special_tokens_map_file": "/home/somebody/special_tokens_map.json",
        "tokenizer_file": "/root/.cache/x",
    }
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    (tmp_path / "chat_template.json").write_text('{"chat_template": "{{ messages }}"}')
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "additional_chat_templates" / "rag.jinja").touch()
    assert model_files.check(tmp_path) == []


def test_names_that_lead_out() -> None:
    names = ["config.json", "a/b.json", "..hidden", "a..b", "/etc/x", "../x", "a/../../x", "a\\..\\x", "~/x"]
    assert model_files.strays(names) == names[4:]


@pytest.mark.e2e
@pytest.mark.parametrize("case", ["list", "mapping", "special tokens", "vocabulary"])
def test_this_is_what_transformers_does(tmp_path: Path, case: str) -> None:
    """With a version that does none of it any more, the check can go."""
    transformers = pytest.importorskip("transformers")
    tokenizers = pytest.importorskip("tokenizers")
    model, out = tmp_path / "model", tmp_path / "a" / "b" / "out"
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0, "<unk>": 1}, "<unk>"))
    transformers.PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>").save_pretrained(model)
    assert model_files.check(model) == []
    config = json.loads((model / "tokenizer_config.json").read_text())
    if case == "special tokens":
        del config["added_tokens_decoder"]
        special = json.loads((model / "special_tokens_map.json").read_text())
        (model / "special_tokens_map.json").write_text(json.dumps({**special, "chat_template": NAMED}))
    elif case == "vocabulary":
        (tmp_path / "private").write_text("private")
        config |= {"vocab_file": str(tmp_path / "private"), "tokenizer_class": "GemmaTokenizerFast"}
    else:
        config["chat_template"] = NAMED if case == "list" else MAPPED
    (model / "tokenizer_config.json").write_text(json.dumps(config))
    kind = transformers.GemmaTokenizerFast if case == "vocabulary" else transformers.PreTrainedTokenizerFast
    kind.from_pretrained(str(model)).save_pretrained(str(out))
    strays = [path.name for path in (tmp_path / "a").rglob("*") if path.is_file() and path.parent != out]
    copied = (out / "tokenizer.model").read_text() if case == "vocabulary" else ""
    assert (strays, copied) == (([], "private") if case == "vocabulary" else (["stray.jinja"], ""))
    assert model_files.check(model) != []
    shutil.rmtree(out)
