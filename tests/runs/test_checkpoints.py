"""Complete or absent, in the launcher's eyes and in the worker's."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path

import pytest

from cpt_launcher.errors import ConfigError, NotReadyError
from cpt_launcher.runs import checkpoints
from cpt_launcher.stack import worker

FILES = {
    "model.safetensors": 300,
    "rng_state_0.pth": 20,
    "rng_state_1.pth": 20,
    "global_step{}/zero_pp_rank_0_mp_rank_00_model_states.pt": 50,
    "global_step{}/zero_pp_rank_1_mp_rank_00_model_states.pt": 50,
    "global_step{}/zero_pp_rank_0_mp_rank_00_optim_states.pt": 500,
    "global_step{}/zero_pp_rank_1_mp_rank_00_optim_states.pt": 500,
}


def save(output: Path, step: int, *, marked: bool = True, loss: float = 2.5) -> Path:
    """A checkpoint as DeepSpeed and transformers leave it, with two ranks and ZeRO-3."""
    folder = output / f"checkpoint-{step}"
    for name, size in FILES.items():
        path = folder / name.format(step)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x" * size)
    state = {"global_step": step, "log_history": [{"loss": 9.0}, {"loss": loss}, {"eval_loss": 1.0}]}
    (folder / "trainer_state.json").write_text(json.dumps(state))
    if marked:
        worker.mark(folder, {"step": step, "loss": loss, "workers": 2})
    return folder


def test_what_is_said_of_a_checkpoint(tmp_path: Path) -> None:
    save(tmp_path, 100, loss=3.25)
    save(tmp_path, 20)
    (tmp_path / "checkpoint-tmp").mkdir()
    first, second = checkpoints.find(tmp_path, marked=True)
    assert (first.step, second.step) == (20, 100)
    assert (second.loss, second.complete, second.workers, second.stage) == (3.25, True, 2, 3)
    assert second.size == sum(path.stat().st_size for path in second.path.rglob("*") if path.is_file())
    assert second.resumable(2) == ""
    assert "written by 2 workers" in second.resumable(4)


@pytest.mark.parametrize("seed", range(20))
def test_one_cut_short_anywhere_is_incomplete(tmp_path: Path, seed: int) -> None:
    folder = save(tmp_path, 5)
    chance = random.Random(seed)
    victim = chance.choice(sorted(path for path in folder.rglob("*") if path.is_file()))
    size = chance.randrange(victim.stat().st_size)
    victim.write_bytes(victim.read_bytes()[:size])
    (found,) = checkpoints.find(tmp_path, marked=True)
    assert not found.complete
    assert found.resumable(2) == found.missing != ""


def test_a_missing_file_or_marker_makes_it_incomplete(tmp_path: Path) -> None:
    (save(tmp_path, 5) / "rng_state_1.pth").unlink()
    save(tmp_path, 6, marked=False)
    five, six = checkpoints.find(tmp_path, marked=True)
    assert five.missing == "rng_state_1.pth is missing"
    assert six.missing == "not written to its end: cpt-complete.json is missing"


def test_of_one_that_lost_files_it_is_said_which(tmp_path: Path) -> None:
    folder = save(tmp_path, 5)
    for name, missing in (
        ("rng_state_0", "rng_state_0.pth is"),
        ("rng_state_1", "rng_state_0.pth and 1 more are"),
    ):
        (folder / f"{name}.pth").unlink()
        assert checkpoints.read(folder, marked=True).missing == f"{missing} missing"
    (said,) = checkpoints.clear(checkpoints.find(tmp_path, marked=True), remove=False)
    assert said.startswith("checkpoint-5 is incomplete (rng_state_0.pth and 1 more are missing); it is now ")


def test_without_markers_the_files_decide(tmp_path: Path) -> None:
    folder = save(tmp_path, 6, marked=False)
    assert checkpoints.find(tmp_path)[0].complete
    assert checkpoints.find(tmp_path)[0].loss == 2.5
    (folder / "rng_state_1.pth").unlink()
    assert checkpoints.find(tmp_path)[0].missing == "1 random states of 2 ranks"
    (folder / "trainer_state.json").write_text('{"global')
    assert "trainer_state.json" in checkpoints.find(tmp_path)[0].missing


def test_rays_own_copies_are_found_and_links_are_not_counted_twice(tmp_path: Path) -> None:
    folder = save(tmp_path / "output", 6)
    trial = tmp_path / "TorchTrainer_1"
    worker.link(folder, trial)
    copy = trial / "checkpoint_000001" / "checkpoint"
    save(tmp_path / "else", 4, marked=False).rename(copy.parent.with_name("moved"))
    copy.parent.mkdir()
    (trial / "moved").rename(copy)
    four, six = checkpoints.find(tmp_path / "output", tmp_path, marked=True)
    assert (four.step, four.copied, four.complete, four.path) == (4, True, True, copy)
    assert (six.step, six.copied) == (6, False)


def test_the_newest_complete_one_is_chosen_and_what_is_newer_is_cleared(tmp_path: Path) -> None:
    for step in (10, 20):
        save(tmp_path, step)
    save(tmp_path, 30, marked=False)
    newest, broken = checkpoints.choose(tmp_path, 2, marked=True)
    assert newest is not None
    assert newest.step == 20
    said = checkpoints.clear(broken, remove=False)
    why = "not written to its end: cpt-complete.json is missing"
    assert said[0].startswith(f"checkpoint-30 is incomplete ({why}); it is now ")
    assert len(list(tmp_path.glob("checkpoint-30.*"))) == 1
    save(tmp_path, 40, marked=False)
    _, broken = checkpoints.choose(tmp_path, 2, marked=True)
    assert "is removed" in checkpoints.clear(broken, remove=True)[0]
    assert not list(tmp_path.glob("checkpoint-40*"))
    with pytest.raises(ConfigError, match="cannot resume from checkpoint-20"):
        checkpoints.choose(tmp_path, 4, marked=True)


def test_retention_keeps_the_newest_complete_ones(tmp_path: Path) -> None:
    for step in (9, 10, 100):
        save(tmp_path, step)
    save(tmp_path, 110, marked=False)
    worker.prune(tmp_path, 0)
    assert len(list(tmp_path.iterdir())) == 4
    worker.prune(tmp_path, 2)
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint-10", "checkpoint-100", "checkpoint-110"}
    worker.prune(tmp_path, 1)
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint-100", "checkpoint-110"}


def test_links_are_relative_numbered_and_go_with_what_they_point_to(tmp_path: Path) -> None:
    trial = tmp_path / "run" / "TorchTrainer_1"
    for step in (1, 2):
        worker.link(save(tmp_path / "run" / "output", step), trial)
    first, second = (trial / f"checkpoint_00000{n}" / "checkpoint" for n in (0, 1))
    (tmp_path / "run").rename(tmp_path / "moved")
    trial = tmp_path / "moved" / "TorchTrainer_1"
    first, second = (trial / f"checkpoint_00000{n}" / "checkpoint" for n in (0, 1))
    assert (first.resolve().name, second.resolve().name) == ("checkpoint-1", "checkpoint-2")
    worker.prune(tmp_path / "moved" / "output", 1)
    worker.link(save(tmp_path / "moved" / "output", 3), trial)
    assert not first.parent.exists()
    assert second.exists()


BAD_MARKERS: dict[str, str | bytes] = {
    "deep": "[" * 100_000,
    "a list": "[]",
    "binary": b"\x00\xff",
    "above": json.dumps({"files": {"../../../etc/passwd": 1}}),
    "absolute": json.dumps({"files": {"/etc/passwd": 1}}),
    "NUL": json.dumps({"files": {"a\0b": 1}}),
    "no name": json.dumps({"files": {"": 1}}),
    "size is text": json.dumps({"files": {"model.safetensors": "300"}}),
    "size is a list": json.dumps({"files": {"model.safetensors": [300]}}),
    "files are a list": json.dumps({"files": ["model.safetensors"]}),
    "no files": json.dumps({"files": {}}),
}


@pytest.mark.parametrize("kind", BAD_MARKERS)
def test_a_bad_marker_makes_a_damaged_checkpoint(tmp_path: Path, kind: str) -> None:
    save(tmp_path, 5)
    text = BAD_MARKERS[kind]
    marker = save(tmp_path, 6) / "cpt-complete.json"
    marker.write_bytes(text if isinstance(text, bytes) else text.encode())
    five, six = checkpoints.find(tmp_path, marked=True)
    assert (five.complete, six.complete) == (True, False)


def test_a_marker_tells_nothing_of_files_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("12345")
    marker = save(tmp_path / "output", 6) / "cpt-complete.json"
    marker.write_text(json.dumps({"files": {"../../secret": 1}}))
    assert checkpoints.find(tmp_path / "output")[0].missing == "secret is missing"


@pytest.mark.parametrize("facts", [{"step": "x"}, {"loss": "x"}, {"loss": 10**400}, {"workers": []}, {"step": -1}])
def test_facts_of_a_marker_that_are_none_are_left_out(tmp_path: Path, facts: dict[str, object]) -> None:
    marker = save(tmp_path, 6) / "cpt-complete.json"
    marker.write_text(json.dumps({**json.loads(marker.read_text()), **facts}))
    (found,) = checkpoints.find(tmp_path, marked=True)
    (name,) = facts
    assert (found.complete, getattr(found, name)) == (True, 6 if name == "step" else None)


def test_names_that_are_no_numbers_are_no_checkpoints(tmp_path: Path) -> None:
    save(tmp_path, 6).rename(tmp_path / "checkpoint-²")
    assert checkpoints.find(tmp_path) == ()
    assert worker.complete(tmp_path) == []


def test_retention_leaves_links_and_what_they_lead_to(tmp_path: Path) -> None:
    theirs = save(tmp_path / "theirs", 1)
    (tmp_path / "output").mkdir()
    (tmp_path / "output" / "checkpoint-1").symlink_to(theirs)
    for step in (2, 3):
        save(tmp_path / "output", step)
    worker.prune(tmp_path / "output", 1)
    assert sorted(path.name for path in (tmp_path / "output").iterdir()) == ["checkpoint-1", "checkpoint-3"]
    assert checkpoints.find(tmp_path / "theirs", marked=True)[0].complete


def test_a_marker_is_not_written_through_a_link(tmp_path: Path) -> None:
    folder, precious = save(tmp_path, 1, marked=False), tmp_path / "precious"
    precious.write_text("x")
    (folder / ".cpt-complete.json").symlink_to(precious)
    with pytest.raises(OSError, match="a link is in the way"):
        worker.mark(folder, {})
    assert precious.read_text() == "x"


OTHER = 65534


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file to another user")
def test_whose_a_checkpoint_is(tmp_path: Path) -> None:
    first, second = save(tmp_path, 1), save(tmp_path, 2)
    checkpoints.require_resuming_ours(tmp_path, ())
    checkpoints.require_resuming_ours(tmp_path / "absent", ())
    planted = second / "global_step2" / "zero_pp_rank_0_mp_rank_00_optim_states.pt"
    os.chown(planted, OTHER, OTHER)
    for check in (checkpoints.require_resuming_ours, checkpoints.require_ours):
        folder = tmp_path if check is checkpoints.require_resuming_ours else second
        with pytest.raises(NotReadyError, match="it is nobody's") as caught:
            check(folder, ("somebody",))
        assert (caught.value.exit_code, caught.value.problems[0].where) == (4, str(planted))
        assert caught.value.problems[0].hint.endswith("--trust-owner nobody")
        check(folder, ("nobody",))
        check(folder, (str(OTHER),))
    checkpoints.require_ours(first, ())
    checkpoints.require_ours(tmp_path, ())  # a final model's folder: the checkpoints in it are not loaded
    os.chown(tmp_path / "checkpoint-2", OTHER, OTHER)
    (second / "cpt-complete.json").unlink()
    checkpoints.require_resuming_ours(tmp_path, ())  # not complete, so not resumed from
