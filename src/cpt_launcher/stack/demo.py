"""The demo's model, made on the spot: no hub, no account, no download."""

from __future__ import annotations

import contextlib
import io
import json
import os
from pathlib import Path

from cpt_launcher import shipped

VOCABULARY = 2048
SEED = 0


def corpus() -> Path:
    """The demo's corpus, as shipped."""
    return shipped.shipped(shipped.DATASETS) / "moby_dick.jsonl"


def make_model(folder: Path) -> None:
    """A byte-level BPE tokenizer trained on the corpus and a Gemma 3 of 1.2 M random parameters.

    Always the same bytes for the same versions of torch, transformers and tokenizers.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # else it warns of every process started from here on
    with contextlib.redirect_stdout(io.StringIO()):  # DeepSpeed, imported on the way, announces itself there
        _tokenizer(folder)
        _weights(folder)


def _tokenizer(folder: Path) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    lines = corpus().read_text(encoding="utf-8").splitlines()
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<pad>", "<eos>", "<bos>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((json.loads(line)["text"] for line in lines), trainer)
    special = {"pad_token": "<pad>", "eos_token": "<eos>", "bos_token": "<bos>"}
    # Its default has token_type_ids among them, which Gemma's `generate` refuses.
    takes = ["input_ids", "attention_mask"]
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_input_names=takes, **special).save_pretrained(folder)


def _weights(folder: Path) -> None:
    import torch
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    torch.manual_seed(SEED)
    shape = Gemma3TextConfig(
        vocab_size=VOCABULARY, hidden_size=128, intermediate_size=512, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=1, head_dim=32, query_pre_attn_scalar=32, max_position_embeddings=1024,
        sliding_window=256, pad_token_id=0, eos_token_id=1, bos_token_id=2,
    )  # fmt: skip
    Gemma3ForCausalLM(shape).save_pretrained(folder)
