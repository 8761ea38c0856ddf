"""Shapes against published counts, memory and time against what was measured on GPUs (docs/plan.md)."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from cpt_launcher.config import read
from cpt_launcher.errors import ConfigError
from cpt_launcher.plan import memory, pace, shape, sizing
from cpt_launcher.plan.memory import Setting
from cpt_launcher.plan.plan import plan_run

from ..conftest import REPOSITORY, Outcome

GEMMA4, GEMMA1, LLAMA, QWEN = (
    "google/gemma-3-4b-pt", "google/gemma-3-1b-pt", "meta-llama/Llama-3.2-3B", "Qwen/Qwen3-4B-Base"
)  # fmt: skip
PARAMETERS = {  # as transformers 4.52 counts them
    GEMMA1: 999_885_952,
    GEMMA4: 3_880_263_168,
    "google/gemma-3-12b-pt": 11_766_034_176,
    "google/gemma-3-27b-pt": 27_009_346_304,
    "meta-llama/Llama-3.2-1B": 1_235_814_400,
    LLAMA: 3_212_749_824,
    "meta-llama/Llama-3.1-8B": 8_030_261_248,
    "meta-llama/Llama-3.1-70B": 70_553_706_496,
    "Qwen/Qwen3-0.6B-Base": 596_049_920,
    "Qwen/Qwen3-1.7B-Base": 1_720_574_976,
    QWEN: 4_022_468_096,
    "Qwen/Qwen3-8B-Base": 8_190_735_360,
    "Qwen/Qwen3-14B-Base": 14_768_307_200,
}
# Model, workers, ZeRO stage, block, micro-batch, recomputes, liger, fused AdamW; GiB after set-up and at the peak, and
# seconds a step, as seen on one H200. Several workers: rank 0 of a process group that does nothing.
MEASURED = [
    (GEMMA4, 1, 3, 512, 1, True, False, False, 28.9, 65.5, 1.082),
    (GEMMA4, 4, 3, 512, 1, True, False, False, 7.2, 21.8, None),
    (GEMMA4, 1, 2, 2048, 4, True, False, False, 21.7, 86.8, 0.946),
    (GEMMA1, 1, 2, 2048, 4, False, False, False, 5.6, 63.0, 0.277),
    (QWEN, 1, 2, 2048, 4, True, False, False, 22.5, 90.0, 0.892),
    (LLAMA, 1, 3, 2048, 4, True, False, False, 24.0, 61.2, 0.851),
    (GEMMA4, 1, 2, 2048, 8, False, True, True, 21.7, 117.8, 1.002),
    (GEMMA4, 1, 3, 2048, 8, False, True, True, 28.9, 123.1, 1.210),
    (GEMMA4, 1, 2, 2048, 16, True, True, True, 21.7, 79.6, 2.358),
    (GEMMA4, 4, 2, 2048, 12, False, True, True, 10.8, 117.2, None),
    (GEMMA4, 4, 3, 2048, 12, False, True, True, 7.2, 119.0, None),
    (GEMMA4, 4, 2, 2048, 16, True, True, True, None, 32.2, None),
    (GEMMA4, 4, 2, 2048, 8, True, True, True, None, 27.7, None),
]


def setting(model: str, workers: int, stage: int, block: int, batch: int, *flags: bool) -> Setting:
    kind = dataclasses.replace(shape.find(model), not_trained=0)
    plain = Setting(kind, workers, stage, block, batch, 1, *flags)
    if stage == 3:
        auto = memory.auto_buckets(kind)
        buckets = auto["reduce_bucket_size"], auto["stage3_prefetch_bucket_size"]
        return dataclasses.replace(plain, reduce_bucket=buckets[0], prefetch_bucket=buckets[1])
    return dataclasses.replace(plain, overlap=True)


def test_parameters_are_those_of_the_models() -> None:
    assert {name: shape.find(name).trained for name in shape.known()} == PARAMETERS
    assert shape.find(GEMMA4).loaded == 4_300_079_472


@pytest.mark.parametrize("row", MEASURED, ids=lambda row: "-".join(map(str, row[:8])))
def test_memory_and_time_are_near_what_was_measured(row: tuple[object, ...]) -> None:
    one = setting(*row[:8])  # type: ignore[arg-type]
    after, peak, seconds = row[8:]
    said = memory.estimate(one)
    if after is not None:
        assert said.after_setup / 2**30 == pytest.approx(after, rel=0.02)
    assert said.peak / 2**30 == pytest.approx(peak, rel=0.1)
    if seconds is not None:
        assert pace.estimate(one, pace.gpu("H200")).step == pytest.approx(seconds, rel=0.2)


def test_the_guides_own_figures() -> None:
    """7.44 GB (GiB) allocated after the optimizer's set-up, 1.9 s a step on four L40S."""
    one = dataclasses.replace(
        setting(GEMMA4, 4, 3, 512, 1, True, False, False), accumulation=2, shape=shape.find(GEMMA4)
    )  # fmt: skip
    assert memory.estimate(one).after_setup / 2**30 == pytest.approx(7.44, rel=0.01)
    assert pace.estimate(one, pace.gpu("L40S")).step == pytest.approx(1.9, rel=0.2)


def test_offloading_moves_the_states_to_the_host() -> None:
    plain = setting(GEMMA4, 4, 3, 512, 1, True, False, False)
    moved = dataclasses.replace(plain, offload_optimizer=True, offload_parameters=True)
    assert memory.estimate(moved).peak < memory.estimate(plain).peak - 12 * plain.shape.trained / 4
    assert memory.estimate(moved).host == 18 * plain.shape.trained
    assert memory.estimate(plain).host == 0


@pytest.mark.parametrize("path", sorted((REPOSITORY / "configs").glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_configs_fit_the_node_they_name(path: Path, tmp_path: Path) -> None:
    config = read.read(path, [f"storage={tmp_path}"], {"CPT_STORAGE": str(tmp_path)})
    asked = config.resources.accelerator  # type: ignore[union-attr]
    if asked is None:
        pytest.skip("runs on CPUs")
    found = sizing.size(plan_run(config, {}), {"HOME": str(tmp_path)}, tokens=10**8, rate=2.0)
    card = next(card for card in found.cards if card.card == asked)
    assert card.fits
    assert found.setting.micro_batch <= card.largest < found.setting.micro_batch * 40
    assert card.times is not None
    assert card.seconds == card.times.all > card.times.steps > 0
    assert card.price == pytest.approx((card.seconds or 0) / 3600 * 4 * 2.0)


def test_the_fast_recipe_is_planned_to_be_many_times_the_guides(tmp_path: Path) -> None:
    rates = []
    for name in ("gemma3_4b.yaml", "gemma3_4b_fast.yaml"):
        config = read.read(REPOSITORY / "configs" / name, [f"storage={tmp_path}"], {})
        found = sizing.size(plan_run(config, {}), {"HOME": str(tmp_path)})
        rates += [card.pace.rate for card in found.cards if card.card == "H200" and card.pace]
    assert rates[1] > 20 * rates[0]


@pytest.mark.parametrize(
    ("card", "warned"),
    [
        ("L40S", True),
        ("NVIDIA L40S", True),
        ("A100-40G", True),
        ("NVIDIA H100 80GB HBM3", False),
        ("T4", False),
        ("", False),
    ],
)
def test_a_run_that_will_not_fit_is_warned_of(card: str, warned: bool, tmp_path: Path) -> None:
    config = read.read(REPOSITORY / "configs" / "gemma3_4b_fast.yaml", [f"storage={tmp_path}"], {})
    said = sizing.warnings(plan_run(config, {}), {"HOME": str(tmp_path)}, card)
    assert [("largest micro-batch that fits is" in text) for text in said] == [True] * warned


@pytest.mark.parametrize(("name", "warned"), [("gemma3_4b.yaml", True), ("gemma3_4b_l40s.yaml", False)])
def test_a_run_that_leaves_the_gpu_idle_is_warned_of(name: str, warned: bool, tmp_path: Path) -> None:
    config = read.read(REPOSITORY / "configs" / name, [f"storage={tmp_path}"], {})
    said = sizing.warnings(plan_run(config, {}), {"HOME": str(tmp_path)}, "NVIDIA L40S")
    idle = "each L40S will compute at about 3% of its rate: a micro-batch is 512 tokens, and train.per_device"
    assert [text.startswith(idle) for text in said] == [True] * warned


def test_plan_says_it_all(cpt: Callable[..., Outcome], tmp_path: Path) -> None:
    config = str(REPOSITORY / "configs" / "gemma3_4b.yaml")
    more = (f"storage={tmp_path}", "--tokens", "50000", "--rate", "1.5", "train.max_samples=null", "train.packing=true")
    done = cpt("plan", config, *more, "--gpu", "L40S")
    assert done.code == 0, done.err
    sized = json.loads(cpt("plan", config, *more, "--json").out)
    seen = sized["steps"] * 4_096
    epochs = f"steps    {sized['steps']:,} = {seen:,} tokens, about {seen / 50_000:.2f} epochs"
    for words in (
        "3,880,263,168 parameters trained of 4,300,079,472",
        "= 4,096 tokens",
        "after the optimizer's",
        epochs,
    ):
        assert words in done.out
    assert row(done, "L40S")[:2] == ["L40S", "yes"]
    assert "PRICE: TIME on 4 GPUs at 1.5 a GPU hour, in that rate's currency." in done.out
    assert "packing: true makes blocks of cutoff_len - 1 tokens" in done.err  # what validation warns of
    found = json.loads(cpt("plan", config, *more, "--json").out)
    assert 0 < found["cards"][0]["mfu"] < 0.1
    assert found["steps"] == 24  # 97 blocks, 24 batches of the four workers, 12 steps, two epochs
    assert [card["card"] for card in found["cards"]] == list(pace.gpus())
    assert cpt("plan", config, "--gpu", "B9").code == 2
    offloaded = cpt("plan", config, *more, "deepspeed=ds_z3_offload_config.json", "--gpu", "L40S")
    assert "of all workers together: 71 GB" in offloaded.out  # 18 bytes a parameter, and the tower's 2
    assert row(offloaded, "L40S")[3:6] == ["?", "?", "?"]  # no measurements, no figure
    assert "offloading was not measured" in offloaded.out


def row(done: Outcome, card: str) -> list[str]:
    return next(line.split() for line in done.out.splitlines() if line.startswith(card))


def test_a_model_that_is_not_known(cpt: Callable[..., Outcome], tmp_path: Path) -> None:
    done = cpt("plan", str(REPOSITORY / "configs" / "gemma3_4b.yaml"), f"storage={tmp_path}", "model=some/model")
    assert (done.code, "the shape of some/model is not known" in done.err) == (2, True)
    folder = tmp_path / "m"
    folder.mkdir()
    values = {**shape.known()[QWEN], "vocab_size": 1000}
    (folder / "config.json").write_text(json.dumps(values))
    assert shape.find(str(folder)).trained == PARAMETERS[QWEN] - (151936 - 1000) * 2560
    for broken in ({**values, "model_type": "mamba"}, {**values, "hidden_size": None}):
        (folder / "config.json").write_text(json.dumps(broken))
        with pytest.raises(ConfigError, match=r"is not known|is missing"):
            shape.find(str(folder))
    (folder / "config.json").unlink()
    with pytest.raises(ConfigError, match="there is no config"):
        shape.find(str(folder))
    (folder / "config.json").write_text("{")
    with pytest.raises(ConfigError, match=r"config\.json"):
        shape.find(str(folder))


def test_a_multimodal_config_counts_its_vision_tower() -> None:
    text = {key: value for key, value in shape.known()[GEMMA4].items() if key != "not_trained"}
    whole = {"model_type": "gemma3", "text_config": {**text, "model_type": "gemma3_text"}, "vision_config": {}}
    assert shape.read("x", whole, "c").loaded == 4_300_079_472


# Of a Llama of 23.2 M parameters on CPU with DeepSpeed 0.16.9: workers, ZeRO stage, recomputes, and seen there in MB:
# all tensors after the set-up, weights and states between two steps, and for ZeRO-3 the profiler's peak.
SMALL = {
    "model_type": "llama", "hidden_size": 512, "intermediate_size": 1376, "num_hidden_layers": 6,
    "num_attention_heads": 8, "vocab_size": 8192, "tie_word_embeddings": True,
}  # fmt: skip
SEEN_ON_CPU = [
    ("bf16", 1, 2, False, 139, 324, None),
    ("fp32", 1, 2, False, 185, 371, None),
    ("bf16", 1, 3, False, 186, 324, 881),
    ("fp32", 1, 3, False, 279, 371, 1227),
    ("fp32", 4, 2, True, 116, 162, None),
]


@pytest.mark.parametrize(("precision", "workers", "stage", "again", "after", "held", "peak"), SEEN_ON_CPU)
def test_32_bits_take_what_deepspeed_holds(
    precision: memory.Precision, workers: int, stage: int, again: bool, after: int, held: int, peak: int | None
) -> None:
    kind = shape.read("small", SMALL, "c")
    one = Setting(kind, workers, stage, 512, 4, checkpointing=again, precision=precision, reduce_bucket=512**2)
    said = memory.estimate(one)
    assert said.after_setup / 1e6 == pytest.approx(after, rel=0.01)
    assert (said.weights + said.optimizer) / 1e6 == pytest.approx(held, rel=0.01)
    if peak:
        assert said.peak / 1e6 == pytest.approx(peak, rel=0.05)


@pytest.mark.parametrize(
    ("precision", "stage", "deepspeed", "each"),
    [  # bytes a parameter of weights, gradients and states, on two workers
        ("bf16", 0, False, (4, 4, 8)),
        ("fp32", 0, False, (4, 4, 8)),
        ("pure_bf16", 0, False, (2, 2, 4)),
        ("bf16", 0, True, (2, 6, 6)),
        ("fp16", 0, True, (2, 2, 12)),
        ("fp32", 0, True, (4, 4, 8)),
        ("bf16", 1, True, (2, 2, 6)),
        ("bf16", 2, True, (2, 1, 6)),
        ("fp32", 2, True, (4, 2, 6)),
        ("pure_bf16", 2, True, (2, 2, 6)),
        ("fp16", 3, True, (1, 1, 6)),
        ("fp32", 3, True, (2, 2, 6)),
    ],
)
def test_bytes_a_parameter(
    precision: memory.Precision, stage: int, deepspeed: bool, each: tuple[int, int, int]
) -> None:
    kind = shape.find(LLAMA)
    said = memory.estimate(Setting(kind, 2, stage, 512, 1, precision=precision, deepspeed=deepspeed))
    assert tuple(part / kind.trained for part in (said.weights, said.gradients, said.optimizer)) == each


def test_a_config_without_bf16_needs_more_and_has_no_time(cpt: Callable[..., Outcome], tmp_path: Path) -> None:
    config = str(REPOSITORY / "configs" / "qwen3_4b.yaml")
    half, full = (
        json.loads(
            cpt("plan", config, f"storage={tmp_path}", f"train.bf16={given}", "--tokens", "9999999", "--json").out
        )
        for given in ("true", "false")
    )
    assert full["memory"]["weights"] == 2 * half["memory"]["weights"]
    assert full["memory"]["activations"] == pytest.approx(2 * half["memory"]["activations"], rel=0.01)
    assert half["cards"][4]["seconds"] > 0
    assert {card["seconds"] for card in full["cards"]} == {None}


def test_zero2_makes_its_whole_bucket_however_small_the_model() -> None:
    small = Setting(shape.read("small", SMALL, "c"), 1, 2, 512, 4)
    assert memory.estimate(small).buckets > 2 * small.reduce_bucket > 20 * small.shape.trained


def test_an_evaluation_with_liger_has_all_logits() -> None:
    one = setting(GEMMA4, 4, 2, 2048, 13, True, True, True)
    said = memory.estimate(dataclasses.replace(one, evaluated=13))
    assert said.evaluation > 10 * 13 * 2048 * one.shape.vocabulary
    assert said.peak > 2 * memory.estimate(one).peak
    assert memory.estimate(dataclasses.replace(one, evaluated=1)).peak == memory.estimate(one).peak


def held_out_config(tmp_path: Path, more: str = "") -> Path:
    """Two CPU workers and 400 documents, of which the last 100 are held out."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text(json.dumps(SMALL))
    (tmp_path / "s").mkdir()
    (tmp_path / "dataset_info.json").write_text('{"c": {"file_name": "c.jsonl", "columns": {"prompt": "text"}}}')
    (tmp_path / "c.jsonl").write_text("".join(f'{{"id": {n}, "text": "{"lorem " * 200}"}}\n' for n in range(400)))
    config = tmp_path / "my.yaml"
    config.write_text(
        f"name: mine\nstorage: {tmp_path}/s\nmodel: {tmp_path}/model\ndataset: c\ndeepspeed: ds_z3_config.json\n"
        f"resources: {{cpus: 2}}\ntracking: none\neval: {{documents: 100}}\n"
        f"train: {{cutoff_len: 128, save_steps: 10, max_steps: 25, per_device_train_batch_size: 1{more}}}\n"
    )
    return config


def test_cpu_workers_get_no_cards_and_no_time(
    cpt: Callable[..., Outcome], clean_env: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    done = cpt("plan", held_out_config(tmp_path))
    assert done.code == 0, done.err
    assert "32 bits throughout" in done.out
    assert "Time on CPUs is not estimated" in done.out
    assert not re.search("L40S|GPU|CARD|on the card|TIME", done.out)
    assert re.search(r"the worker's process +1\.\d GB", done.out)
    assert "--gpu and --rate are for GPU workers" in cpt("plan", tmp_path / "my.yaml", "--rate", "3").err


def test_the_corpus_is_the_same_as_for_validate(
    cpt: Callable[..., Outcome], clean_env: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    config = held_out_config(tmp_path)
    checked = cpt("validate", config, "--data").err
    tokens = int(re.search(r"about ([\d,]+) tokens", checked)[1].replace(",", ""))  # type: ignore[index]
    found = json.loads(cpt("plan", config, "--json").out)
    assert (found["tokens"], found["held_out"]) == (tokens * 3 // 4, tokens // 4)
    assert cpt("stage-data", config).code == 0
    staged = json.loads(cpt("plan", config, "--json").out)
    assert (staged["tokens"], staged["held_out"]) == (found["tokens"], found["held_out"])
    assert (staged["evaluations"], staged["saves"]) == (4, 3)  # at 0, 10, 20 and the end; at 10, 20 and 25


def test_evaluations_and_saves_take_time(clean_env: pytest.MonkeyPatch, tmp_path: Path) -> None:
    config = held_out_config(tmp_path, ", bf16: true")
    found = sizing.size(plan_run(read.read(config, ["resources={gpus: 2}"]), {}), {}, rate=3)
    times = next(card.times for card in found.cards if card.card == "H100")
    one = found.setting
    assert times is not None
    assert times.evaluations == 4 * pace.evaluation(one, pace.gpu("H100"), found.held_out or 0) > 0
    assert times.saves == (3 * found.checkpoint + found.model) / pace.SAVE_RATE
    step = pace.estimate(one, pace.gpu("H100"))
    a_step = pace.evaluation(one, pace.gpu("H100"), one.tokens_per_step)
    assert step.step / 4 < a_step < step.step  # a forward of three passes, with the recomputation
