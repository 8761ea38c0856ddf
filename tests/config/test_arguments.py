import json
import os
import re
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest
import yaml

from cpt_launcher.config import arguments, editor
from cpt_launcher.config.arguments import DATA, Argument

from ..conftest import REPOSITORY

SCHEMA = arguments.load()


def test_the_arguments_of_0_9_3() -> None:
    assert (SCHEMA.version, len(SCHEMA.arguments)) == ("0.9.3", 328)
    rate = SCHEMA.arguments["learning_rate"]
    assert (rate.group, rate.types, rate.default, rate.optional) == ("training", ("float",), 5e-05, False)
    assert "cosine" in SCHEMA.arguments["lr_scheduler_type"].choices
    assert SCHEMA.arguments["ray_num_workers"].group == "ray"
    assert SCHEMA.templates["gemma"]
    assert not SCHEMA.templates["empty"]
    assert "use_v1_kernels" in SCHEMA.adds["0.9.4"]


# Arguments that LLaMA-Factory's own example YAMLs set, the exotic methods included.
EXAMPLES = re.findall(
    r"\w+",
    """
adapter_name_or_path additional_target apollo_layerwise apollo_rank apollo_scale apollo_scale_type apollo_target
badam_mode badam_switch_interval badam_switch_mode badam_verbose bf16 cutoff_len dataloader_num_workers dataset
dataset_dir ddp_timeout deepspeed do_predict do_train double_quantization eval_dataset eval_steps eval_strategy
finetuning_type flash_attn fp16 freeze_trainable_layers freeze_trainable_modules galore_layerwise galore_rank
galore_scale galore_target gradient_accumulation_steps image_max_pixels learning_rate logging_steps lora_alpha
lora_dropout lora_rank lora_target loraplus_lr_ratio lr_scheduler_type max_new_tokens max_samples mixture_of_depths
model_name_or_path num_train_epochs optim output_dir overwrite_cache overwrite_output_dir packing
per_device_eval_batch_size per_device_train_batch_size pissa_convert pissa_init pissa_iter placement_strategy plot_loss
predict_with_generate pref_beta pref_loss preprocessing_num_workers pure_bf16 quantization_bit quantization_method
ray_init_kwargs ray_num_workers ray_run_name ray_storage_path report_to resources_per_worker resume_from_checkpoint
reward_model save_only_model save_steps stage streaming template tokenized_path top_k top_p trust_remote_code
upcast_layernorm use_adam_mini use_apollo use_badam use_galore use_llama_pro use_muon val_size video_max_pixels
warmup_ratio enable_liger_kernel use_unsloth_gc
""",
)


def test_no_false_alarm_on_what_the_examples_set() -> None:
    assert [name for name in EXAMPLES if name not in SCHEMA.arguments] == []


@pytest.mark.parametrize(
    ("types", "value", "fits"),
    [
        (("float",), 1, True),
        (("int",), 1.5, False),
        (("int",), True, False),
        (("bool",), "true", False),
        (("str",), 3, False),
        (("dict", "str"), {}, True),
        (("str",), ["a"], False),
        (("str", "list"), ["a"], True),
    ],
)
def test_accepts(types: tuple[str, ...], value: object, fits: bool) -> None:
    assert Argument("g", types, (), False, 0, "").accepts(value) is fits


def test_the_editors_schema_is_valid_and_ships() -> None:
    made = editor.config_schema(SCHEMA)
    jsonschema.Draft7Validator.check_schema(made)
    assert made == json.loads((DATA / "config.schema.json").read_text())


@pytest.mark.parametrize("config", sorted((REPOSITORY / "configs").glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_configs_obey_the_editors_schema_and_name_it(config: Path) -> None:
    text = config.read_text()
    jsonschema.validate(yaml.safe_load(text), editor.config_schema(SCHEMA))
    line = text.splitlines()[0]
    assert line.startswith("# yaml-language-server: $schema=")
    assert (config.parent / line.partition("=")[2]).is_file()


def test_the_editors_schema_refuses_typos() -> None:
    config = yaml.safe_load((REPOSITORY / "configs" / "tiny_cpu.yaml").read_text())
    for broken in (
        {**config, "nmae": "x"},
        {**config, "train": {"cutof_len": 1}},
        {**config, "resources": {"gpus": "2"}},
    ):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(broken, editor.config_schema(SCHEMA))


@pytest.mark.e2e
def test_the_data_is_what_the_installed_stack_says(tmp_path: Path) -> None:
    made = tmp_path / "made.json"
    command = [sys.executable, str(REPOSITORY / "tools" / "make_schema.py"), str(made)]
    subprocess.run(command, check=True, capture_output=True, env={**os.environ, "DS_ACCELERATOR": "cpu"})
    assert json.loads(made.read_text()) == json.loads((DATA / "llamafactory.json").read_text())
