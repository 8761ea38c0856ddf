"""Rules on LLaMA-Factory's arguments: each looks at all of them and yields what is wrong.

The failures behind them, with the messages a user would see hours later, are in docs/failures.md.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

from cpt_launcher.config.suggest import near
from cpt_launcher.validate.arguments import (
    Arguments,
    out_of_range,
    short,
    unexpanded_variables,
    unknown_arguments,
    wrong_choices,
    wrong_types,
)
from cpt_launcher.validate.report import Finding

Rule = Callable[[Arguments], Iterator[Finding]]
PATHS = ("output_dir", "deepspeed", "dataset_dir", "tokenized_path", "resume_from_checkpoint")


def check(arguments: Arguments) -> list[Finding]:
    """All findings of all rules."""
    return [finding for rule in CHECKS for finding in rule(arguments)]


def relative_paths(args: Arguments) -> Iterator[Finding]:
    for name in PATHS if args.on_ray else ():
        value = args.values.get(name)
        if not isinstance(value, str) or value.startswith(("/", "${")) or "://" in value:
            continue
        lost = " and is lost with it: the model, its plot, its log" if name == "output_dir" else ""
        what = f"{name}: {short(value)} is relative; a worker has a directory of its own{lost}"
        yield args.error("relative-path", name, what, "give an absolute path on storage that all workers reach")
    for name in ("ray_storage_path", "model_name_or_path"):
        value = args.values.get(name)
        if isinstance(value, str) and value.startswith("~"):
            yield args.error("relative-path", name, f"{name}: nothing expands '~' here", "write the path out")


def storage(args: Arguments) -> Iterator[Finding]:
    path = args.values.get("ray_storage_path")
    if not isinstance(path, str):
        return
    if "://" in path:
        hint = "ray_storage_filesystem: s3 and ray_storage_path: bucket/prefix"
        yield args.error("storage-url", "ray_storage_path", f"{path} would become a local folder of that name", hint)
    elif not args.values.get("ray_storage_filesystem") and re.match(r"/(tmp|dev/shm|mnt/local_storage)(/|$)", path):
        what = f"{path} belongs to one node: other nodes do not see it, and it goes with the node"
        yield args.warning("storage-scope", "ray_storage_path", what, "use storage that all nodes share")
    if args.values.get("ray_storage_filesystem") and "tensorboard" in str(args.values.get("report_to")):
        what = "TensorBoard cannot write the arguments of a run with ray_storage_filesystem"
        yield args.error("tracker", "report_to", what, "report_to: mlflow or none")


def method(args: Arguments) -> Iterator[Finding]:
    stage = args.get("stage")
    if "stage" not in args.values:
        yield args.error("stage", "stage", "stage is missing, and then it is sft", "stage: pt")
    elif stage != "pt" and stage in args.schema.arguments["stage"].choices:
        yield args.warning("stage", "stage", f"stage: {stage} is no continued pre-training", "stage: pt")
    if not args.values.get("do_train") and not args.values.get("do_predict") and not args.values.get("do_eval"):
        what = "without do_train the run ends well and trains nothing"
        yield args.error("not-trained", "do_train", what, "do_train: true")
    if "finetuning_type" not in args.values:
        what = "finetuning_type is missing, and then a LoRA adapter is trained"
        yield args.error("lora-by-default", "finetuning_type", what, "finetuning_type: full")


def end_of_text(args: Arguments) -> Iterator[Finding]:
    template = args.get("template")
    if args.get("stage") != "pt" or template == "llama3" or not isinstance(template, str):
        return  # for llama3, LLaMA-Factory writes <|end_of_text|> (data/processor/pretrain.py)
    if args.schema.templates.get(template):
        what = f"template: {template} ends every document with the chat's end-of-turn token"
        yield args.warning("template-eos", "template", what, "template: empty keeps the model's own end of text")


def precision(args: Arguments) -> Iterator[Finding]:
    if args.values.get("bf16") is True and args.values.get("fp16") is True:
        yield args.error("precision", "fp16", "bf16 and fp16 cannot both be on", "keep bf16")
    elif args.gpus and not any(args.values.get(name) for name in ("bf16", "fp16", "pure_bf16")):
        what = "neither bf16 nor fp16: everything is computed in 32 bits"
        yield args.warning("precision", "bf16", what, "bf16: true")
    if args.gpus is False and (args.values.get("bf16") is True or args.values.get("fp16") is True):
        name = "bf16" if args.values.get("bf16") is True else "fp16"
        yield args.error("precision", name, f"{name} needs a GPU in LLaMA-Factory", f"{name}: false")
    if args.gpus is False and args.values.get("use_cpu") is True:
        what = "with use_cpu DeepSpeed sees one worker only"
        yield args.error("ray-resources", "use_cpu", what, "leave it out: CPU workers are found anyway")


def evaluation(args: Arguments) -> Iterator[Finding]:
    val_size, strategy = args.number("val_size") or 0.0, args.get("eval_strategy")
    asked = strategy not in (None, "no", False) or args.values.get("do_eval") is True
    if asked and not val_size and not args.values.get("eval_dataset"):
        name = "eval_strategy" if "eval_strategy" in args.values else "do_eval"
        yield args.error("evaluation", name, "there is nothing to evaluate on", "val_size: 0.01, or eval_dataset")
    if val_size and not asked:
        what = "val_size holds data back that is never evaluated"
        yield args.warning("evaluation", "val_size", what, "eval_strategy: steps")
    if val_size and args.values.get("eval_dataset"):
        yield args.error("evaluation", "val_size", "val_size and eval_dataset exclude each other", "keep one of them")


def cadence(args: Arguments) -> Iterator[Finding]:
    saves, evaluates = args.get("save_strategy"), args.get("eval_strategy") or "no"
    save_steps, eval_steps = args.number("save_steps"), args.number("eval_steps") or args.number("logging_steps")
    steps = saves == evaluates == "steps" and save_steps and eval_steps
    uneven = bool(steps and save_steps and eval_steps and save_steps >= 1 and save_steps % eval_steps)
    if args.values.get("load_best_model_at_end") is True and saves != "best" and (saves != evaluates or uneven):
        what = (
            "load_best_model_at_end needs saves at evaluations: the same strategy, save_steps a multiple of eval_steps"
        )
        yield args.error("cadence", "load_best_model_at_end", what)
    elif uneven:
        what = (
            f"save_steps ({save_steps:g}) is no multiple of eval_steps ({eval_steps:g}): checkpoints carry an old loss"
        )
        yield args.warning("cadence", "save_steps", what)


def checkpoints(args: Arguments) -> Iterator[Finding]:
    if args.get("save_strategy") == "no":
        yield args.warning("checkpoints", "save_strategy", "nothing is saved before the end", "save_strategy: steps")
    limit, step = args.number("max_steps"), args.number("save_steps")
    if limit and step and 0 < limit < step and args.get("save_strategy") == "steps":
        what = f"save_steps ({step:g}) is beyond the last step ({limit:g}): the only checkpoint comes at the end"
        yield args.warning("checkpoints", "save_steps", what)
    if args.values.get("save_only_model") is True:
        what = "save_only_model: these checkpoints cannot be resumed from"
        yield args.warning("checkpoints", "save_only_model", what, "save_only_model: false")
    if args.values.get("overwrite_output_dir") is True and args.on_ray:
        what = "overwrite_output_dir: an interrupted run starts over, and Ray copies stale checkpoints"
        yield args.warning("checkpoints", "overwrite_output_dir", what, "leave it out")
    if args.values.get("resume_from_checkpoint") is True:
        what = "resume_from_checkpoint: true looks for a checkpoint of that name"
        yield args.error("resume", "resume_from_checkpoint", what, "leave it out, or name a checkpoint folder")


def packing(args: Arguments) -> Iterator[Finding]:
    if args.get("stage") != "pt":
        return
    if args.values.get("neat_packing") is True:
        yield args.error("packing", "neat_packing", "LLaMA-Factory allows neat_packing for sft only", "leave it out")
    if args.values.get("packing") is False:
        what = "packing: false cuts every document at cutoff_len and drops the rest of it"
        yield args.warning("packing", "packing", what, "leave packing out")
    if args.values.get("packing") is True:
        what = "packing: true makes blocks of cutoff_len - 1 tokens; left out, they have cutoff_len"
        yield args.warning("packing", "packing", what, "leave packing out")


def streaming(args: Arguments) -> Iterator[Finding]:
    if args.values.get("streaming") is not True:
        return
    if (args.number("max_steps") or -1) <= 0:
        yield args.error("streaming", "streaming", "a stream has no length: max_steps is needed", "max_steps: 1000")
    if args.values.get("max_samples") is not None:
        yield args.error("streaming", "max_samples", "max_samples does not go with streaming", "leave one of them out")
    if not args.number("dataloader_num_workers"):
        what = "a stream of local files needs dataloader_num_workers, or it ends at once"
        yield args.error("streaming", "streaming", what, "dataloader_num_workers: 1")


def tokenized(args: Arguments) -> Iterator[Finding]:
    if args.values.get("tokenized_path"):
        what = "if tokenized_path exists, dataset, template, cutoff_len and max_samples are ignored"
        yield args.warning("tokenized-path", "tokenized_path", what, "use a new path whenever one of them changes")


def tracker(args: Arguments) -> Iterator[Finding]:
    raw = args.values.get("report_to")
    names = [raw] if isinstance(raw, str) else raw if isinstance(raw, list) else []
    if raw in (None, "all"):
        what = "without report_to every installed tracker is used"
        yield args.warning("tracker", "report_to", what, "report_to: mlflow or none")
    for name in names:
        if isinstance(name, str) and name not in args.schema.trackers:
            yield args.error(
                "tracker", "report_to", f"there is no tracker {short(name)}", near(name, args.schema.trackers)
            )
    if "mlflow" in names and "MLFLOW_TRACKING_URI" not in args.env_vars():
        what = "mlflow without MLFLOW_TRACKING_URI writes into the worker's own directory"
        yield args.warning("tracker", "report_to", what, "set it in ray_init_kwargs.runtime_env.env_vars")


def ray_resources(args: Arguments) -> Iterator[Finding]:
    wanted = args.values.get("resources_per_worker")
    if isinstance(wanted, dict):
        for label, amount in wanted.items():
            if not isinstance(amount, int | float) or isinstance(amount, bool) or not amount > 0:
                what = f"resources_per_worker.{label} must be a number above 0, not {short(amount)}"
                yield args.error("ray-resources", "resources_per_worker", what)
            elif label.lower() in ("gpu", "cpu") and label not in ("GPU", "CPU"):
                what = f"Ray has no resource '{label}' and would wait for it for ever"
                yield args.error("ray-resources", "resources_per_worker", what, label.upper())
            elif label == "GPU" and amount != 1:
                what = f"a worker uses one GPU; of {amount} the others idle, and less than one is shared"
                yield args.warning("ray-resources", "resources_per_worker", what, "GPU: 1 and more ray_num_workers")
    started = args.values.get("ray_init_kwargs")
    sizes = {"num_cpus", "num_gpus"} & set(started) if isinstance(started, dict) else set()
    if sizes:
        what = f"{', '.join(sorted(sizes))} in ray_init_kwargs is an error as soon as a cluster is there"
        yield args.warning("ray-resources", "ray_init_kwargs", what, "leave it out")


CHECKS: tuple[Rule, ...] = (
    unknown_arguments, wrong_types, wrong_choices, out_of_range, unexpanded_variables, relative_paths, storage, method,
    end_of_text, precision, evaluation, cadence, checkpoints, packing, streaming, tokenized, tracker, ray_resources,
)  # fmt: skip
