"""Which checkpoint is meant, and what stops an export before it starts; the real thing is in test_models_e2e."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from cpt_launcher.cli import show
from cpt_launcher.errors import ConfigError, NotReadyError, Problem, StorageError, TrainingError
from cpt_launcher.layout import Layout
from cpt_launcher.runs import export, history

from ..conftest import Outcome
from .test_checkpoints import save
from .test_history import step, write

Cpt = Callable[..., Outcome]


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    layout = Layout(tmp_path / "storage", "first")
    (layout.run_dir / "cpt").mkdir(parents=True)
    layout.train_yaml.write_text("model_name_or_path: some/model\ncutoff_len: 512\nlearning_rate: 1.0e-4\n")
    facts: dict[str, object] = {"data": {"c.jsonl": "ab12"}, "versions": {"ray": "2.48.0"}, "tokens_per_step": 1_024}
    packed = {"documents": 9, "tokens_in": 747_600, "blocks": 1_460, "tokens": 747_520, "lost": 80}
    facts["tokens"] = {**packed, "end_of_text": "<eos>"}
    write(layout, state="interrupted", in_force={"learning_rate": 0.0002}, **facts)
    for number, loss in ((10, 3.0), (20, 2.0), (30, 2.5)):
        save(layout.output, number, loss=loss)
    events: list[dict[str, object]] = [{"event": "eval", "step": 0, "loss": 5.0}]
    for number, loss in ((10, 4.0), (20, 3.0), (30, 3.5)):
        events += [step(number), {"event": "eval", "step": number, "loss": loss}]
    layout.events.write_text("".join(json.dumps(event) + "\n" for event in events))
    return layout


def test_which_checkpoint_is_meant(layout: Layout) -> None:
    run = history.load(layout)
    assert [export.choose(run, wanted).step for wanted in ("last", "best", "10")] == [30, 20, 10]
    (layout.output / "checkpoint-30" / "cpt-complete.json").unlink()
    assert export.choose(run, "last").step == 20
    with pytest.raises(ConfigError, match="checkpoint-30 is not complete"):
        export.choose(run, "30")
    with pytest.raises(ConfigError, match="there is no checkpoint of step 7") as caught:
        export.choose(run, "7")
    assert "complete ones: 10, 20" in caught.value.problems[0].hint
    with pytest.raises(ConfigError, match="--checkpoint cannot be 'bset'") as caught:
        export.choose(run, "bset")
    assert caught.value.problems[0].hint == "did you mean 'best'?"
    layout.events.write_text("")
    with pytest.raises(ConfigError, match="held-out data"):
        export.choose(history.load(layout), "best")


def test_the_final_model_of_a_finished_run_is_the_last(layout: Layout) -> None:
    write(layout, state="finished")
    (layout.output / "model.safetensors").touch()
    (layout.output / "config.json").touch()
    assert export.choose(history.load(layout), "last").path == layout.output


def test_a_run_without_a_checkpoint(cpt: Cpt, tmp_path: Path) -> None:
    layout = Layout(tmp_path, "empty")
    (layout.run_dir / "cpt").mkdir(parents=True)
    write(layout, state="failed")
    done = cpt("export", layout.run_dir, "--to", tmp_path / "out")
    assert (done.code, "has no complete checkpoint" in done.err) == (2, True)
    assert cpt("export", "nope", "--storage", tmp_path, "--to", tmp_path / "out").code == 2
    assert cpt("export", layout.run_dir).code == 2
    assert not (tmp_path / "out").exists()


def test_what_stops_it_before_anything_is_written(
    cpt: Cpt, layout: Layout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "mine").touch()
    done = cpt("export", layout.run_dir, "--to", taken)
    assert (done.code, "is there and not empty" in done.err) == (2, True)
    done = cpt("export", layout.run_dir, "learning_rate=1", "--to", tmp_path / "out")
    assert (done.code, "no argument of LLaMA-Factory's export" in done.err) == (2, True)
    done = cpt("export", layout.run_dir, "export_siz=2", "--to", tmp_path / "out")
    assert (done.code, "did you mean 'export_size'?" in done.err) == (2, True)
    run = history.load(layout)
    monkeypatch.setattr("cpt_launcher.plan.footprint.count_parameters", lambda _: 10**15)
    with pytest.raises(StorageError, match="are free"):
        export.export(run, tmp_path / "out", export.Options(), {}, lambda _: None)
    monkeypatch.setattr("cpt_launcher.disk.require_space", lambda *_: None)
    with pytest.raises(NotReadyError, match="GB of memory"):
        export.export(run, tmp_path / "out", export.Options(), {}, lambda _: None)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["storage", "taken"]


def test_the_model_card(layout: Layout) -> None:
    run = history.load(layout)
    card = export.card(run, export.choose(run, "20"), {"parameters": 1234567, "dtype": "bfloat16"})
    assert card.startswith(
        "---\nlibrary_name: transformers\npipeline_tag: text-generation\nbase_model: some/model\n"
        "tags:\n- continued-pretraining\n---\n\n# first\n"
    )
    assert "of `some/model`.\n" in card
    for line in (
        "| Step | 20 of 40 |",
        "| Held-out loss | base model 5.0000, this one 3.0000 |",
        "| Parameters | 1,234,567, bfloat16 |",
        "- `c.jsonl`, sha256 `ab12`",
        "| Trained on | 20,480 tokens |",
        "| Corpus | 747,520 tokens in 1,460 blocks of 512 |",
        "| Documents end in | `<eos>` |",
        "learning_rate: 0.0002",
        "ray 2.48.0",
    ):
        assert line in card


def test_the_card_of_an_earlier_checkpoint_has_the_loss_of_its_step(layout: Layout) -> None:
    rows = [{**step(10, 7.0), "epoch": 0.5}, step(18, 6.5) | {"epoch": 0.9}, step(30, 6.0) | {"epoch": 1.5}]
    layout.events.write_text("".join(json.dumps(event) + "\n" for event in rows))
    run = history.load(layout)

    def said(wanted: str) -> list[str]:
        card = export.card(run, export.choose(run, wanted), {})
        return [line for line in card.splitlines() if line.startswith(("| Training loss", "| Trained on"))]

    assert said("20") == [
        "| Training loss | 7.0000 at first, 6.5000 at last |",
        "| Trained on | 20,480 tokens, 1.00 epochs |",
    ]
    assert said("30")[0] == "| Training loss | 7.0000 at first, 6.0000 at last |"
    save(layout.output, 5)
    assert said("5") == ["| Trained on | 5,120 tokens |"]


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ("some/model", export.Base("some/model", "some/model")),
        ("{storage}/models/own--mo--del", export.Base("own/mo--del", "own/mo--del", "abc")),
        ("{storage}/models/other", export.Base("other")),
        ("/home/me/.cache/hub/models--own--model/snapshots/f00", export.Base("own/model", "own/model", "f00")),
        ("/home/me/own--model", export.Base("own--model")),
        ("./here/model", export.Base("model")),
    ],
)
def test_the_base_model_by_its_id_or_its_name_alone(layout: Layout, model: str, expected: export.Base) -> None:
    for folder, said in (
        ("own--mo--del", '{"model": "own/mo--del", "revision": "abc"}'),
        ("other", '{"model": "x/y"}'),
    ):
        marker = layout.storage / "models" / folder / ".cpt-complete.json"
        marker.parent.mkdir(parents=True)
        marker.write_text(said)
    model = model.format(storage=layout.storage)
    assert export.base(model, layout.storage) == expected
    layout.train_yaml.write_text(f"model_name_or_path: {model}\n")
    run = history.load(layout)
    card = export.card(run, export.choose(run, "20"), {})
    assert [str(layout.storage) in card, "/home" in card] == [False, False]
    assert (f"\nbase_model: {expected.hub}\n" in card, "base_model" in card) == ((expected.hub is not None,) * 2)


def test_the_hub_reads_the_card(layout: Layout) -> None:
    hub = pytest.importorskip("huggingface_hub")
    run = history.load(layout)
    data = hub.ModelCard(export.card(run, export.choose(run, "20"), {})).data
    assert data.to_dict() == {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "base_model": "some/model",
        "tags": ["continued-pretraining"],
    }


@pytest.mark.parametrize(("parameters", "told"), [(1_214_848, True), (134_515_008, False)])
def test_a_sample_of_a_tiny_model_misleads_nobody(
    capsys: pytest.CaptureFixture[str], parameters: int, told: bool
) -> None:
    seen = {"compared": 9, "parameters": parameters, "dtype": "float32", "generated": "The,,,,"}
    show.exported(export.Exported(Path("/made"), Path("/from"), 40, seen))
    line = next(line for line in capsys.readouterr().out.splitlines() if "The" in line)
    assert line == "  sample       'The,,,,'" + told * " (a model of 1.2 million parameters cannot write)"


def test_a_run_that_held_nothing_out(cpt: Cpt, layout: Layout) -> None:
    done = cpt("eval", layout.run_dir)
    assert (done.code, "held nothing out" in done.err) == (2, True)


def test_a_dataset_that_nobody_registered(cpt: Cpt, layout: Layout) -> None:
    entries = {name: {"file_name": "c.jsonl"} for name in ("corpus", "corpus@last-5pc", "other")}
    (layout.storage / "dataset_info.json").write_text(json.dumps(entries))
    done = cpt("eval", layout.run_dir, "--dataset", "nope")
    assert (done.code, "no dataset 'nope' is registered on the storage" in done.err) == (3, True)
    assert "there are: corpus, other\n" in done.err
    assert "did you mean 'other'?" in cpt("eval", layout.run_dir, "--dataset", "corpus,othr").err


def test_no_database_no_page(cpt: Cpt, tmp_path: Path) -> None:
    done = cpt("ui", "--storage", tmp_path)
    assert (done.code, "there is no MLflow database" in done.err) == (2, True)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file to another user")
@pytest.mark.parametrize("planted", ["output/checkpoint-30", "cpt/train.yaml"])
def test_what_another_user_wrote_is_loaded_only_if_asked_for(
    cpt: Cpt, layout: Layout, tmp_path: Path, planted: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(*_: object, **__: object) -> None:
        raise TrainingError(Problem("it was loaded"))

    monkeypatch.setattr("cpt_launcher.subtask.run", load)
    (layout.output / "checkpoint-30" / "model.safetensors").touch()
    write(layout, state="failed")
    os.chown(layout.run_dir / planted, 65534, 65534)
    (layout.storage / "dataset_info.json").write_text('{"x": {"file_name": "x.jsonl"}}')
    for command in (("export", layout.run_dir, "--to", tmp_path / "out"), ("eval", layout.run_dir, "--dataset", "x")):
        done = cpt(*command)
        assert (done.code, "error: it is nobody's" in done.err) == (4, True)
        assert "--trust-owner nobody" in done.err
        assert "it was loaded" in cpt(*command, "--trust-owner", "nobody").err
    assert not (tmp_path / "out").exists()


def test_the_folders_above_the_target_are_made(layout: Layout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "not" / "there" / "model"

    def made(*_: object, **__: object) -> dict[str, object]:
        (target.parent / ".model.cpt-part").mkdir()  # as LLaMA-Factory makes it: none above it
        return {}

    monkeypatch.setattr("cpt_launcher.subtask.run", made)
    export.export(history.load(layout), target, export.Options(), {}, lambda _: None)
    assert [path.name for path in target.iterdir()] == ["README.md"]
    below = target / "README.md" / "model"
    with pytest.raises(StorageError, match="cannot write: Not a directory"):
        export.export(history.load(layout), below, export.Options(), {}, lambda _: None)
