"""ZeRO shards to whole weights, without running what else is in them; with DeepSpeed's own classes and function."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.e2e

SCRIPT = """
import json, os, sys
from collections import OrderedDict
from pathlib import Path

import torch
from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
from deepspeed.runtime.zero.config import ZeroStageEnum
from deepspeed.utils.tensor_fragment import fragment_address

from cpt_launcher.stack import exporting

here = Path(sys.argv[1])
scalers = {2: LossScaler(1.0), 3: DynamicLossScaler(2.0, 2.0, 1000, 1.0, 1, False, False, None)}


class Planted:
    def __init__(self, mark): self.mark = mark
    def __reduce__(self): return os.system, (f"touch {self.mark}",)


def save(folder, stage, optimizer=None, model=None):
    "A ZeRO checkpoint of one rank and one parameter, 2 x 3."
    shards = folder / "global_step1"
    shards.mkdir(parents=True)
    (folder / "latest").write_text("global_step1")
    flat = torch.arange(6, dtype=torch.float32)
    states = {
        "zero_stage": ZeroStageEnum(stage), "partition_count": 1, "loss_scaler": scalers[stage], "planted": optimizer,
        "fp32_flat_groups" if stage == 3 else "single_partition_of_fp32_groups": [flat],
        "param_slice_mappings": [OrderedDict(w=fragment_address(6, 0))],
    }
    torch.save({"optimizer_state_dict": states}, shards / "zero_pp_rank_0_mp_rank_00_optim_states.pt")
    shape = torch.Size([2, 3])
    states = {
        "buffer_names": [], "module": OrderedDict(w=torch.zeros(2, 3)), "param_shapes": [OrderedDict(w=shape)],
        "shared_params": {}, "ds_version": "0.16.9", "planted": model,
    }
    name = "zero_pp_rank_0_mp_rank_00_model_states.pt" if stage == 3 else "mp_rank_00_model_states.pt"
    torch.save(states, shards / name)
    return folder


exporting.weights_only()
said = {}
for stage in (2, 3):
    said[f"good {stage}"] = exporting.whole_weights(save(here / f"good{stage}", stage))["w"].tolist()
    for place in ("optimizer", "model"):
        mark = here / f"RAN-{place}-{stage}"
        folder = save(here / f"{place}{stage}", stage, **{place: Planted(mark)})
        try:
            exporting.whole_weights(folder)
        except RuntimeError as error:
            said[f"{place} {stage}"] = str(error)
print("SAID" + json.dumps(said))
"""


def said_by(script: str, folder: Path) -> dict[str, object]:
    """What a script with the stack says of its work in a folder, on the CPU."""
    env = {**os.environ, "DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""}
    argv = (sys.executable, "-c", script, str(folder))
    done = subprocess.run(argv, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout.rpartition("SAID")[2]))


def test_shards_are_loaded_and_what_is_planted_in_them_is_not_run(tmp_path: Path) -> None:
    said = said_by(SCRIPT, tmp_path)
    whole = [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]]
    assert (said.pop("good 2"), said.pop("good 3")) == (whole, whole)
    assert sorted(said) == ["model 2", "model 3", "optimizer 2", "optimizer 3"]
    for text in said.values():
        assert "_states.pt calls posix.system, and is not loaded" in text
    assert not list(tmp_path.glob("RAN*"))


TIED = """
import json, sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from cpt_launcher.stack import exporting

here = Path(sys.argv[1])
shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
model = LlamaForCausalLM(LlamaConfig(vocab_size=8, tie_word_embeddings=True, **shape))
words = Tokenizer(models.WordLevel({"The": 0, "<eos>": 1, "<unk>": 2}, unk_token="<unk>"))
words.pre_tokenizer = pre_tokenizers.Whitespace()
for name in ("export", "whole"):
    model.save_pretrained(here / name)
    given = {"eos_token": "<eos>", "unk_token": "<unk>", "model_input_names": ["input_ids", "attention_mask"]}
    PreTrainedTokenizerFast(tokenizer_object=words, **given).save_pretrained(here / name)
tensors = load_file(here / "export" / "model.safetensors")
assert "lm_head.weight" not in tensors
said = {}
head = tensors["model.embed_tokens.weight"].clone()
for case, more in (("both", {"lm_head.weight": head}), ("other", {"lm_head.weight": head + 1}), ("lost", {"x": head})):
    save_file({**tensors, **more}, here / "whole" / "model.safetensors", {"format": "pt"})
    try:
        said[case] = exporting._check(here / "whole", here / "export")["compared"]
    except RuntimeError as error:
        said[case] = str(error)
print("SAID" + json.dumps(said))
"""


def test_weights_that_are_one_tensor_under_two_names_are_compared_as_loaded(tmp_path: Path) -> None:
    said = said_by(TIED, tmp_path)
    assert isinstance(said.pop("both"), int)
    assert said == {
        "other": "lm_head.weight differs from the checkpoint's",
        "lost": "the export lacks x, and 0 more tensors",
    }
