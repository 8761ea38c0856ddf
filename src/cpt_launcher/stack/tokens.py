"""Counts tokens where LLaMA-Factory makes them, before and after packing: in Ray's workers, and in `cpt tokenize`.

Installed before LLaMA-Factory is imported; each map batch adds a line of JSON to a file. Nothing heavy is imported, and
what LLaMA-Factory does is not changed.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from cpt_launcher import jsontext, safe_open
from cpt_launcher.stack.after_import import AfterImport
from cpt_launcher.wording import counted as nouns

FILE, PART = "CPT_TOKEN_COUNT", "CPT_TOKEN_PART"


def install(file: str | None) -> None:
    """Count from now on."""
    if file:
        os.environ[FILE] = file
        AfterImport.install("llamafactory.data.processor.pretrain", _count)
        AfterImport.install("llamafactory.data.loader", _tell_parts_apart)


def _tell_parts_apart(module: Any) -> None:
    inner = module._get_preprocessed_dataset

    def preprocessed(*arguments: Any, **named: Any) -> Any:
        held_out = named.get("is_eval", arguments[7] if len(arguments) > 7 else False)
        os.environ[PART] = "held_out" if held_out else "train"  # the map's processes inherit it
        return inner(*arguments, **named)

    module._get_preprocessed_dataset = preprocessed


def _count(module: Any) -> None:
    kind = module.PretrainDatasetProcessor
    inner = kind.preprocess_dataset

    def preprocess_dataset(self: Any, examples: Any) -> Any:
        # LLaMA-Factory maps once on each node (data/loader.py, `main_process_first`). Ray sets RANK only after the
        # worker's set-up (ray/train/torch/config.py), and the map's own processes inherit it.
        if os.environ.get("RANK", "0") != "0":
            return inner(self, examples)
        own, counting = self.tokenizer, _Counting(self.tokenizer)
        self.tokenizer = counting
        try:
            made = inner(self, examples)
        finally:
            self.tokenizer = own
        end = "<|end_of_text|>" if self.data_args.template == "llama3" else own.eos_token
        row = {
            "part": os.environ.get(PART, "train"), "documents": len(examples["_prompt"]), "tokens_in": counting.tokens,
            "blocks": len(made["input_ids"]), "tokens": sum(map(len, made["input_ids"])), "end_of_text": end,
        }  # fmt: skip
        with safe_open.to_write(Path(os.environ[FILE]), "ab") as file:
            file.write(json.dumps(row).encode() + b"\n")
        return made

    kind.preprocess_dataset = preprocess_dataset


class _Counting:
    """A tokenizer that counts what it makes."""

    def __init__(self, inner: Any) -> None:
        self._inner, self.tokens = inner, 0

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        made = self._inner(*arguments, **named)
        self.tokens += sum(map(len, made["input_ids"]))
        return made

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


def total(lines: Iterable[str]) -> dict[str, object] | None:
    """The training part of a count file: documents, tokens in and packed, blocks, and the end-of-text token."""
    sums, end = dict.fromkeys(("documents", "tokens_in", "blocks", "tokens"), 0), ""
    for line in lines:
        try:
            row = jsontext.parse(line)
        except ValueError:
            continue
        if isinstance(row, Mapping) and row.get("part") == "train" and all(jsontext.is_count(row.get(n)) for n in sums):
            sums = {name: value + int(row[name]) for name, value in sums.items()}
            end = str(row.get("end_of_text"))
    return {**sums, "lost": sums["tokens_in"] - sums["tokens"], "end_of_text": end} if sums["documents"] else None


def describe(counted: Mapping[str, Any]) -> str:
    """A line for a person."""
    lost = counted["lost"] / max(counted["tokens_in"], 1)
    return (
        f"{nouns(counted['tokens_in'], 'token')} in {nouns(counted['documents'], 'document')}, packed into"
        f" {nouns(counted['blocks'], 'block')} ({lost:.2%} lost); documents end in {counted['end_of_text']}"
    )


def describe_trained(trained: Mapping[str, Any]) -> str:
    """A line for a person."""
    epochs = trained.get("epochs")
    passes = f", {epochs:.2f} epochs" if isinstance(epochs, int | float) else ""
    return f"{nouns(trained['tokens'], 'token')} in {nouns(trained['steps'], 'step')}{passes}"
