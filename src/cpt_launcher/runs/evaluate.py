"""Did it learn? Loss and perplexity of the base model and of the trained one, on the same tokens."""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import yaml

from cpt_launcher import child, disk, subtask
from cpt_launcher.config.suggest import unknown
from cpt_launcher.errors import ConfigError, DataError, Problem
from cpt_launcher.plan.plan import UNSET, number
from cpt_launcher.runs import checkpoints, events, export, overlap
from cpt_launcher.runs.history import Run
from cpt_launcher.shipped import REGISTRY
from cpt_launcher.stack.exporting import gathered
from cpt_launcher.staging.dataset import Entry, any_remote, read_registry

# What belongs to the training and its cluster, and would ask for GPUs, a process group or a tracker here.
_NOT_HERE = (
    "deepspeed", "resources_per_worker", "placement_strategy", "resume_from_checkpoint", "eval_on_start",
    "eval_strategy", "eval_steps", "load_best_model_at_end", "metric_for_best_model", "plot_loss", "save_strategy",
)  # fmt: skip


@dataclass(frozen=True)
class Evaluation:
    """Mean loss per token in nats, and exp of it, over `tokens` tokens. `trained_share`: how much of the data, by
    documents, the run was given to train on; None where that is not known, and held-out where it is 0.
    """

    data: str
    tokens: int
    step: int
    base_loss: float
    base_perplexity: float
    loss: float
    perplexity: float
    trained_share: float | None

    @property
    def helped(self) -> bool:
        return self.loss < self.base_loss


def evaluate(
    run: Run,
    dataset: str | None,
    checkpoint: str,
    environ: Mapping[str, str],
    say: Callable[[str], None],
    trust: Sequence[str] = (),
) -> Evaluation:
    """Evaluate both models with LLaMA-Factory, one after the other, and keep the result with the run.

    Args:
        dataset: entries of the storage's registry; None for what the run held out.
        trust: users whose checkpoint may be loaded.

    Raises:
        ConfigError: the run held nothing out, or has no such checkpoint.
        DataError: the storage's registry has no such dataset.
        NotReadyError: the checkpoint is another user's.
        TrainingError: LLaMA-Factory failed.
    """
    train = export.training(run)
    held_out = {name: train[name] for name in ("val_size", "eval_dataset") if train.get(name)}
    if dataset:
        held_out = {"eval_dataset": dataset}
    if "model_name_or_path" not in train:
        hint = "cpt status tells of the run; is its train.yaml there?"
        raise ConfigError(Problem("it does not say what the run was trained from", str(run.layout.train_yaml), hint))
    if not held_out:
        hint = "name one with --dataset, or set eval: in the config of the next run"
        raise ConfigError(Problem(f"the run {run.layout.run} held nothing out", str(run.layout.train_yaml), hint))
    place = Path(str(train.get("dataset_dir") or run.layout.storage), REGISTRY)
    known = read_registry(place) if place.is_file() else {}
    wanted = _names(held_out.get("eval_dataset"))
    _require(wanted, known, place)
    share = _trained_share(run, train, known, wanted)
    disk.require_no_foreign_links(run.layout.storage, run.layout.evaluation.parent)
    chosen = export.choose(run, checkpoint)
    for path in (run.layout.train_yaml, chosen.path):
        checkpoints.require_ours(path, trust)
    if not gathered(chosen.path):
        hint = "cpt export puts its weights together; set stage3_gather_16bit_weights_on_model_save: true"
        raise ConfigError(Problem(f"{chosen.path.name} has no whole weights", str(chosen.path), hint))
    base = str(train["model_name_or_path"])
    arguments = {
        key: value
        for key, value in train.items()
        if key not in (*_NOT_HERE, "val_size", "eval_dataset") and not key.startswith("ray_")
    }
    arguments |= {"do_train": False, "do_eval": True, "report_to": "none", "overwrite_output_dir": True, **held_out}
    if dataset:
        arguments.pop("tokenized_path", None)
    if "eval_dataset" in held_out and "tokenized_path" not in arguments:
        arguments.pop("dataset", None)
    on_cpu = run.record.get("device") == "cpu"
    losses, tokens = [], 0
    for name, model in (("the base model", base), (f"step {chosen.step}", str(chosen.path))):
        say(f"evaluates {name}: {model}")
        env = subtask.needed(environ, model, remote=any_remote(_entries(arguments, known)))
        seen = events.telling(say)
        found = _evaluate({**arguments, "model_name_or_path": model}, env, run.secrets, seen, on_cpu=on_cpu)
        losses.append(found["eval_loss"])
        blocks = round(found["eval_samples_per_second"] * found["eval_runtime"])
        tokens = blocks * number(train, "cutoff_len")
    first, last = losses
    data = ", ".join(f"{name}: {value}" for name, value in held_out.items())
    result = Evaluation(data, tokens, chosen.step, first, _perplexity(first), last, _perplexity(last), share)
    disk.write_json(run.layout.evaluation, asdict(result))
    return result


def _require(wanted: Sequence[str], known: Mapping[str, Entry], registry: Path) -> None:
    """Every name is an entry's.

    Raises:
        DataError: the registry has no such dataset.
    """
    there = ", ".join(name for name in known if "@" not in name) or "none"
    if missing := list(unknown(wanted, known)):
        raise DataError(
            *(
                Problem(
                    f"no dataset '{name}' is registered on the storage", str(registry), near or f"there are: {there}"
                )
                for name, near in missing
            )
        )


def _trained_share(
    run: Run, train: Mapping[str, object], known: Mapping[str, Entry], wanted: Sequence[str]
) -> float | None:
    """How much of it the run was trained on; LLaMA-Factory's `val_size` holds blocks out of all."""
    if not wanted:
        return 0.0
    recorded = run.record.get("data")
    hashes = {str(name): str(digest) for name, digest in recorded.items()} if isinstance(recorded, Mapping) else {}
    fields = {name: entry.fields for name, entry in known.items()}
    trained = _names(train.get("dataset"))
    return overlap.trained_share(fields, run.layout, hashes, trained, wanted, train.get("max_samples"))


def _names(text: object) -> list[str]:
    return [name.strip() for name in str(text or "").split(",") if name.strip()]


def _entries(arguments: Mapping[str, object], known: Mapping[str, Entry]) -> list[Mapping[str, object]]:
    """The registry's entries of what is evaluated on; all of them where that is not said by name."""
    wanted = _names(arguments.get("eval_dataset") or arguments.get("dataset"))
    return [entry.fields for name, entry in known.items() if name in wanted or not wanted]


def _evaluate(
    arguments: Mapping[str, object],
    environ: Mapping[str, str],
    secrets: Sequence[str],
    seen: Callable[[str], None],
    *,
    on_cpu: bool,
) -> dict[str, float]:
    env = {key: value for key, value in environ.items() if key not in (*UNSET, "USE_RAY")}
    if on_cpu:
        env |= {"CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"}
    where = str(arguments["model_name_or_path"])
    with tempfile.TemporaryDirectory(prefix="cpt-eval-") as place:
        recipe, results = Path(place, "eval.yaml"), Path(place, "output", "eval_results.json")
        disk.write_text(recipe, yaml.safe_dump({**arguments, "output_dir": str(results.parent)}))
        argv = child.argv("llamafactory.cli", "train", str(recipe))
        hint = "cpt validate --strict asks LLaMA-Factory's own parser"
        subtask.run(argv, env, "the evaluation", where, hint, secrets=secrets, seen=seen)
        return dict(json.loads(results.read_text(encoding="utf-8")))


def _perplexity(loss: float) -> float:
    return math.exp(min(loss, 700))
