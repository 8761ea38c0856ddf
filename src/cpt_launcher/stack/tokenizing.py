"""LLaMA-Factory's own tokenising, alone and on CPUs: `python -m cpt_launcher.stack.tokenizing TRAIN_YAML FOLDER`.

Runs in a process of its own, with the training stack. Its result is a line for `subtask`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import yaml

from cpt_launcher.stack import tokens
from cpt_launcher.subtask import RESULT

# What asks for GPUs, a process group or a tracker at parse time, and does not change the tokens.
_NOT_HERE = (
    "deepspeed",
    "tf32",
    "bf16",
    "fp16",
    "pure_bf16",
    "tokenized_path",
    "ray_init_kwargs",
    "resume_from_checkpoint",
)


def main() -> None:
    """Tokenise what a training YAML would train on, and save it as LLaMA-Factory's `tokenized_path`."""
    source, target = Path(sys.argv[1]), sys.argv[2]
    counts = Path(f"{target}.counts")
    tokens.install(str(counts))

    from llamafactory.data import get_dataset, get_template_and_fix_tokenizer
    from llamafactory.hparams import get_train_args
    from llamafactory.model import load_tokenizer

    arguments = yaml.safe_load(source.read_text(encoding="utf-8"))
    arguments = {key: value for key, value in arguments.items() if key not in _NOT_HERE}
    arguments |= {"tokenized_path": target, "report_to": "none", "overwrite_output_dir": True, "overwrite_cache": True}
    model, data, training, _, _ = get_train_args(arguments)
    loaded = load_tokenizer(model)
    template = get_template_and_fix_tokenizer(loaded["tokenizer"], data)
    made = get_dataset(template, model, data, training, stage="pt", **loaded)
    result = tokens.total(counts.read_text(encoding="utf-8").splitlines())
    counts.unlink()
    if result is None or result["blocks"] != len(made["train_dataset"]):
        raise RuntimeError(f"counted {result}, and there are {len(made['train_dataset'])} blocks")
    sys.stdout.write(f"\n{RESULT}{json.dumps(result)}\n")


if __name__ == "__main__":
    main()
