"""Shapes against published counts, memory and time against what was measured on GPUs (docs/plan.md)."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from cpt_launcher import memory, pace, reader, shape, sizing
from cpt_launcher.errors import ConfigError
from cpt_launcher.memory import Setting
from cpt_launcher.plan import plan_run

from .conftest import REPOSITORY, Outcome

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
    config = reader.read(path, [f"storage={tmp_path}"], {"CPT_STORAGE": str(tmp_path)})
    asked = config.resources.accelerator  # type: ignore[union-attr]
    if asked is None:
        pytest.skip("runs on CPUs")
    found = sizing.size(plan_run(config, {}), {"HOME": str(tmp_path)}, tokens=10**8, rate=2.0)
    card = next(card for card in found.cards if card.card == asked)
    assert card.fits
    assert found.setting.micro_batch <= card.largest < found.setting.micro_batch * 40
    assert (card.seconds or 0) > 0
    assert card.price == pytest.approx((card.seconds or 0) / 3600 * 4 * 2.0)


def test_the_fast_recipe_is_planned_to_be_many_times_the_guides(tmp_path: Path) -> None:
    rates = []
    for name in ("gemma3_4b.yaml", "gemma3_4b_fast.yaml"):
        config = reader.read(REPOSITORY / "configs" / name, [f"storage={tmp_path}"], {})
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
    config = reader.read(REPOSITORY / "configs" / "gemma3_4b_fast.yaml", [f"storage={tmp_path}"], {})
    said = sizing.warnings(plan_run(config, {}), {"HOME": str(tmp_path)}, card)
    assert [("largest micro-batch that fits is" in text) for text in said] == [True] * warned


@pytest.mark.parametrize(("name", "warned"), [("gemma3_4b.yaml", True), ("gemma3_4b_l40s.yaml", False)])
def test_a_run_that_leaves_the_gpu_idle_is_warned_of(name: str, warned: bool, tmp_path: Path) -> None:
    config = reader.read(REPOSITORY / "configs" / name, [f"storage={tmp_path}"], {})
    said = sizing.warnings(plan_run(config, {}), {"HOME": str(tmp_path)}, "NVIDIA L40S")
    idle = "each L40S will compute at about 3% of its rate: a micro-batch is 512 tokens, and train.per_device"
    assert [text.startswith(idle) for text in said] == [True] * warned


def test_plan_says_it_all(cpt: Callable[..., Outcome], tmp_path: Path) -> None:
    config = str(REPOSITORY / "configs" / "gemma3_4b.yaml")
    more = (f"storage={tmp_path}", "--tokens", "50000", "--rate", "1.5", "train.max_samples=null")
    done = cpt("plan", config, *more, "--gpu", "L40S")
    assert done.code == 0, done.err
    for words in ("3,880,263,168 parameters trained of 4,300,079,472", "4,096 tokens a step", "after the optimizer's"):
        assert words in done.out
    last = done.out.splitlines()[-1].split()
    assert last[:2] == ["L40S", "yes"]
    found = json.loads(cpt("plan", config, *more, "--json").out)
    assert 0 < found["cards"][0]["mfu"] < 0.1
    assert found["steps"] == 24  # 97 blocks, 24 batches of the four workers, 12 steps, two epochs
    assert [card["card"] for card in found["cards"]] == list(pace.gpus())
    assert cpt("plan", config, "--gpu", "B9").code == 2
    offloaded = cpt("plan", config, *more, "deepspeed=ds_z3_offload_config.json", "--gpu", "L40S")
    assert "Host memory for offloading: 71 GB" in offloaded.out  # 18 bytes a parameter, and the tower's 2
    assert offloaded.out.splitlines()[-1].split()[3:6] == ["?", "?", "?"]  # no measurements, no figure


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
