"""A checkpoint to a folder that transformers loads: `python -m cpt_launcher.stack.exporting`, JSON on stdin.

Runs in a process of its own, with the training stack. Through LLaMA-Factory's own export; weights that ZeRO-3 did not
gather are put together first, with DeepSpeed's own function. Its result is a line for `subtask`.
"""

from __future__ import annotations

import functools
import inspect
import json
import pickle
import re
import shutil
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cpt_launcher.subtask import RESULT

SAMPLES = 8
NEW_TOKENS = 12
PROBLEM = "problem"  # in the result: what and hint of an export that cannot be used
_WEIGHTS = ("*.safetensors", "pytorch_model*.bin")


class UnusableError(Exception):
    """The export is as the checkpoint is, and does not work: what is wrong, and what to do about it."""


def main() -> None:
    """Export, check, and say what was seen."""
    request = json.load(sys.stdin)
    weights_only()
    source, target = Path(request["source"]), Path(request["target"])
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}-") as scratch:
        if not gathered(source):
            source = _put_together(source, Path(scratch))
        arguments = {
            "model_name_or_path": str(source),
            "export_dir": str(target),
            "export_device": "cpu",
            "infer_dtype": request["dtype"] or _dtype(source),
            "template": request["template"],
            **request["arguments"],
        }
        from llamafactory.train.tuner import export_model

        export_model(arguments)
        if (source / "generation_config.json").is_file() and not (target / "generation_config.json").is_file():
            shutil.copy(source / "generation_config.json", target)
        _remove_unasked(target)
        try:
            found = _check(source, target) if request["check"] else {}
        except UnusableError as error:
            found = {PROBLEM: error.args}
    sys.stdout.write(f"\n{RESULT}{json.dumps(found)}\n")


def _remove_unasked(target: Path) -> None:
    """What LLaMA-Factory adds to every model: a Modelfile for Ollama and, to a base model, its `empty` template as the
    chat template, by which servers take it for a chat model.
    """
    (target / "Modelfile").unlink(missing_ok=True)
    template = target / "chat_template.jinja"
    if template.is_file():
        from llamafactory.data.template import TEMPLATES
        from transformers import AutoTokenizer

        made_up = TEMPLATES["empty"]._get_jinja_template(AutoTokenizer.from_pretrained(target))
        if template.read_text(encoding="utf-8") == made_up:
            template.unlink()


def gathered(folder: Path) -> bool:
    """Whether a folder holds whole weights."""
    return any(next(folder.glob(pattern), None) for pattern in _WEIGHTS)


def _put_together(checkpoint: Path, scratch: Path) -> Path:
    """ZeRO shards to whole 32-bit weights, with what stands beside them (deepspeed/utils/zero_to_fp32.py)."""
    import torch
    import transformers

    for path in checkpoint.iterdir():
        if path.is_file() and path.suffix in (".json", ".jinja", ".model", ".txt"):
            shutil.copy(path, scratch)
    config = transformers.AutoConfig.from_pretrained(checkpoint)
    config.use_cache = True  # off while training, which the check of a generation config refuses
    weights = whole_weights(checkpoint)
    with torch.device("meta"):
        model = getattr(transformers, config.architectures[0])(config)
    model.save_pretrained(scratch, state_dict=weights)
    (scratch / "config.json").write_text((checkpoint / "config.json").read_text(encoding="utf-8"), encoding="utf-8")
    return scratch


def weights_only() -> None:
    """Have this process load tensors and the few classes of DeepSpeed's shards, and run nothing: DeepSpeed 0.16.9 loads
    them with `weights_only=False` (utils/zero_to_fp32.py).
    """
    import torch

    inner = torch.load

    def load(file: Any, *arguments: Any, **named: Any) -> Any:
        try:
            return inner(file, *arguments, **{**named, "weights_only": True})
        except pickle.UnpicklingError as error:
            found = re.search(r"GLOBAL (\S+)", str(error))
            what = f"calls {found[1]}" if found else "holds more than weights"
            message = f"{file} {what}, and is not loaded; DeepSpeed's own zero_to_fp32.py would run it"
            raise RuntimeError(message) from None

    torch.load = load


def whole_weights(checkpoint: Path) -> dict[str, Any]:
    """The whole 32-bit weights of ZeRO shards, with DeepSpeed's own function.

    Raises:
        RuntimeError: a shard holds more than weights.
    """
    import torch
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

    torch.serialization.add_safe_globals([DynamicLossScaler, LossScaler, ZeroStageEnum, fragment_address])
    return dict(get_fp32_state_dict_from_zero_checkpoint(str(checkpoint)))


def _dtype(folder: Path) -> str:
    """That of the checkpoint: LLaMA-Factory would make 16 bits of 32 where there is a GPU."""
    config: Mapping[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return str(config.get("torch_dtype") or config.get("text_config", {}).get("torch_dtype") or "float32")


def _check(source: Path, target: Path) -> dict[str, object]:
    """Load it back, compare a sample of its tensors with the checkpoint's, and generate.

    Raises:
        RuntimeError: a tensor differs, or is not there.
        UnusableError: its tokenizer does not go with it.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    ours, theirs = _tensors(target), _tensors(source)
    model = AutoModelForCausalLM.from_pretrained(target, torch_dtype="auto")
    names: list[str] = []
    if ours and theirs:  # else quantised, or in another format: loading it is the check
        names = sorted(theirs)[:: max(1, len(theirs) // SAMPLES)]
        tied = sorted(set(theirs) - set(ours))  # DeepSpeed writes weights that are one tensor under both names
        loaded = model.state_dict()
        if lost := [name for name in tied if name not in loaded]:
            raise RuntimeError(f"the export lacks {lost[0]}, and {len(lost) - 1} more tensors")
        ours |= {name: functools.partial(loaded.__getitem__, name) for name in tied}
        names += [name for name in tied if name not in names]
    for name in names:
        here, there = ours[name](), theirs[name]()
        if not torch.equal(here, there.to(here.dtype)):
            raise RuntimeError(f"{name} differs from the checkpoint's")
    tokenizer = AutoTokenizer.from_pretrained(target)
    made = _generate(model, tokenizer)
    return {
        "compared": len(names),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "dtype": str(model.dtype).removeprefix("torch."),
        "generated": tokenizer.decode(made[0], skip_special_tokens=False),
    }


def _generate(model: Any, tokenizer: Any) -> Any:
    """A few tokens, by the call that every tutorial has.

    Raises:
        UnusableError: the tokenizer gives the model what it does not take.
    """
    prompt = tokenizer("The", return_tensors="pt")
    takes = inspect.signature(model.forward).parameters
    try:
        return model.generate(**prompt, max_new_tokens=NEW_TOKENS, do_sample=False)
    except ValueError as error:
        if "model_kwargs" not in str(error):  # transformers/generation/utils.py, _validate_model_kwargs
            raise
        names = json.dumps([name for name in prompt if name in takes])
        refused = ", ".join(name for name in prompt if name not in takes)
    what = f"the tokenizer gives {refused}, which the model's generate() refuses"
    hint = f'export with --no-check, then put "model_input_names": {names} into the tokenizer_config.json in'
    raise UnusableError(what, hint)


def _tensors(folder: Path) -> dict[str, Any]:
    """Each tensor of a folder's safetensors files, by name, as something that loads it."""
    from safetensors import safe_open

    found: dict[str, Any] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118 - not a mapping
                found[name] = lambda path=path, name=name: _load(path, name)
    return found


def _load(path: Path, name: str) -> Any:
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        return file.get_tensor(name)


if __name__ == "__main__":
    main()
