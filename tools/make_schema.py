"""Writes LLaMA-Factory's arguments as data: python tools/make_schema.py OUT (needs the training stack).

The arguments of the installed version come from its dataclasses; what other versions add and drop comes from the
source in their wheels, which are downloaded and not run.
"""

from __future__ import annotations

import ast
import dataclasses
import enum
import json
import re
import subprocess
import sys
import tempfile
import typing
import zipfile
from importlib.metadata import version
from pathlib import Path

OTHER_VERSIONS = ("0.9.4", "0.9.5")
# deepspeed.ai/docs/config-json and deepspeed/runtime/config.py: read key by key, so there is no list to import.
DEEPSPEED_KEYS = (
    "train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "optimizer", "scheduler",
    "communication_data_type", "seq_parallel_communication_data_type", "prescale_gradients",
    "gradient_predivide_factor", "sparse_gradients", "fp16", "bf16", "amp", "gradient_clipping", "zero_optimization",
    "zero_allow_untested_optimizer", "zero_force_ds_cpu_optimizer", "aio", "steps_per_print", "wall_clock_breakdown",
    "dump_state", "flops_profiler", "activation_checkpointing", "sparse_attention", "data_efficiency",
    "curriculum_learning", "tensorboard", "wandb", "csv_monitor", "comet", "elasticity", "autotuning", "comms_logger",
    "compression_training", "checkpoint", "data_types", "nebula", "hybrid_engine", "compile", "timers",
    "disable_allgather", "memory_breakdown", "dataloader_drop_last", "eigenvalue", "progressive_layer_drop",
    "quantize_training", "use_data_before_expert_parallelism", "weight_quantization", "graph_harvesting",
    "tensor_parallel", "checkpoint_parallel_write_pipeline",
)  # fmt: skip
GROUPS = {"ModelArguments": "model", "DataArguments": "data", "FinetuningArguments": "method"}


def describe(kind: object) -> tuple[list[str], list[str], bool]:
    """Type names, choices, and whether None is allowed, of one annotation."""
    origin, parts = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Union:
        inner = [describe(part) for part in parts if part is not type(None)]
        types = [name for names, _, _ in inner for name in names]
        return list(dict.fromkeys(types)), [c for _, choices, _ in inner for c in choices], type(None) in parts
    if origin is typing.Literal:
        return ["str"], list(parts), False
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return ["str"], [member.value for member in kind], False
    return [getattr(origin or kind, "__name__", str(kind))], [], False


def argument(field: dataclasses.Field, kind: object, group: str) -> dict[str, object]:
    types, choices, optional = describe(kind)
    default = None if field.default is dataclasses.MISSING else field.default
    if isinstance(default, enum.Enum):
        default = default.value
    optional = optional or default is None
    text = " ".join(str(field.metadata.get("help", "")).split())
    return {"group": group, "types": types, "choices": choices, "optional": optional, "default": default, "help": text}


def installed() -> dict[str, dict[str, object]]:
    from llamafactory.hparams.parser import _TRAIN_ARGS
    from llamafactory.hparams.training_args import RayArguments

    ray = {field.name for field in dataclasses.fields(RayArguments)}
    found = {}
    for owner in _TRAIN_ARGS:
        hints = typing.get_type_hints(owner)
        group = GROUPS.get(owner.__name__, owner.__name__.removesuffix("Arguments").lower())
        for field in dataclasses.fields(owner):
            if field.init:
                found[field.name] = argument(field, hints[field.name], "ray" if field.name in ray else group)
    return dict(sorted(found.items()))


def names_in_wheel(wanted: str) -> set[str]:
    """Every dataclass field in a version's hparams, from its source."""
    names: set[str] = set()
    with tempfile.TemporaryDirectory() as folder:
        pip = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", folder]
        subprocess.run([*pip, "--no-binary=:none:", "--only-binary=:all:", f"llamafactory=={wanted}"], check=True)
        with zipfile.ZipFile(next(Path(folder).glob("*.whl"))) as wheel:
            for path in wheel.namelist():
                if path.startswith("llamafactory/hparams/") and path.endswith("_args.py") and "evaluation" not in path:
                    names |= fields_in_source(wheel.read(path).decode())
    return names


def listed_in_installed() -> list[str]:
    """Arguments declared as text that LLaMA-Factory splits at commas, and so takes as lists too."""
    import llamafactory.hparams as hparams

    sources = [path.read_text() for path in Path(hparams.__file__).parent.glob("*_args.py")]
    return sorted({name for source in sources for name in re.findall(r"self\.(\w+)[^=\n]* = split_arg", source)})


def fields_in_source(source: str) -> set[str]:
    classes = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ClassDef)]
    assigned = [item for node in classes for item in node.body if isinstance(item, ast.AnnAssign)]
    return {item.target.id for item in assigned if isinstance(item.target, ast.Name)}


def templates() -> dict[str, bool]:
    """Template names, and whether each replaces the tokenizer's end-of-text token (data/template.py)."""
    from llamafactory.data.template import TEMPLATES

    return {name: bool(template.replace_eos) for name, template in sorted(TEMPLATES.items())}


def trackers() -> list[str]:
    from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

    return sorted([*INTEGRATION_TO_CALLBACK, "all", "none"])


def zero_keys() -> list[str]:
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    fields = DeepSpeedZeroConfig.model_fields
    return sorted({*fields, *(field.alias for field in fields.values() if field.alias)})


def main() -> None:
    here = version("llamafactory")
    ours = names_in_wheel(here)
    others = {name: names_in_wheel(name) for name in OTHER_VERSIONS}
    data = {
        "versions": {name: version(name) for name in ("llamafactory", "transformers", "deepspeed")},
        "arguments": installed(),
        "lists": listed_in_installed(),
        "other_versions": {name: sorted(theirs - ours) for name, theirs in others.items()},
        "templates": templates(),
        "trackers": trackers(),
        "zero_optimization": zero_keys(),
        "deepspeed": sorted(DEEPSPEED_KEYS),
    }
    Path(sys.argv[1]).write_text(json.dumps(data, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
