"""A project's folder: what programs put there is not judged, and what the user wrote is."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from cpt_launcher.validate import files
from cpt_launcher.validate.files import Options

from ..conftest import REPOSITORY, Outcome

BAD_CONFIG = "name: r\nstorage: /s\nmodel: a/b\ndataset: nowhere\n"
OTHERS = {
    "package.json": '{"name": "x", "version": "1", "env": {"A": "<your value>"}}',
    "compose.yaml": "name: x\nsecrets: {}\nservices: {}\n",
    "tokenizer.json": '{"version": "1.0", "model": {"type": "BPE"}}',
    "rules.json": '{"stage": "A stage.", "packing": "Packing.", "a": "", "b": "", "c": ""}',
    "sizes.json": '{"train_batch_size": 3, "a": 1, "b": 2, "c": 3}',
    "state.json": "\0not text",
    "infinite.json": '{"value": Infinity}',
    "result.json": '{"a": 1}\n{"a": 2}\n',
    "deploy.yaml": "kind: A\nmetadata: {name: x}\n---\nkind: B\n",
}


@pytest.fixture
def project(workspace: Path) -> Path:
    """A project with each kind of folder that is not looked into; a bad config lies in each."""
    inside = {
        "store/.cpt/manifest.json": "{}",
        "store/run/cpt/run.json": "{}",
        "results/run/cpt/run.json": "{}",
        "models/tiny/config.json": '{"model_type": "gpt2"}',
        "models/other/config.json": '{"architectures": []}',
        "saves/checkpoint-1/trainer_state.json": "{}",
        "cache/models--a--b/refs/main": "x",
        "web/node_modules/x/package.json": "{}",
        "py/pyvenv.cfg": "",
        ".hidden/x": "",
    }
    for name, text in inside.items():
        path = workspace / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        (path.parent / "bad.yaml").write_text(BAD_CONFIG)
    (workspace / "results" / "run" / "bad.yaml").write_text(BAD_CONFIG)
    return workspace


def test_what_programs_put_there_is_skipped_and_said(cpt: Callable[..., Outcome], project: Path) -> None:
    for name, text in OTHERS.items():
        (project / name).write_text(text)
    done = cpt("validate", ".")
    assert (done.code, "error" in done.out) == (0, False), done
    assert (
        "cpt: skipped: 2 Hugging Face caches, 1 checkpoint, 2 models, 1 node_modules folder, 1 run, 1 storage, "
        "1 virtual environment (name one to look into it)\n"
    ) in done.err
    assert ": 2 files, 0 errors" in done.err, done.err


def test_what_is_skipped_is_looked_into_where_it_is_named(project: Path) -> None:
    for name in ("py", "models/tiny", "results/run"):
        rules = [item.rule for item in files.validate([project / name], Options(environ={})).findings]
        assert "unknown-dataset" in rules, name


@pytest.mark.parametrize("name", sorted(OTHERS))
def test_a_named_file_is_judged(project: Path, name: str) -> None:
    (project / name).write_text(OTHERS[name])
    assert files.validate([project / name], Options(environ={})).findings


@pytest.mark.parametrize(
    ("name", "text", "rule"),
    [
        ("x.yaml", BAD_CONFIG, "unknown-dataset"),
        ("x.yaml", BAD_CONFIG + "\ttrain: {}\n", "yaml-syntax"),
        ("x.yaml", "stage: pt\ndo_train: true\nnonsense: 1\n", "unknown-argument"),
        ("dataset_info.json", "{", "yaml-syntax"),
        ("ds.json", '{"zero_optimization": {"stage": 2},}', "yaml-syntax"),
        ("ds.json", json.dumps({"zero_optimization": {"stage": 9}, "train_batch_size": "auto"}), "wrong-value"),
    ],
)
def test_what_the_user_wrote_is_judged(tmp_path: Path, name: str, text: str, rule: str) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / name).write_text(text)
    assert rule in [item.rule for item in files.validate([tmp_path], Options(environ={})).findings]


def test_the_packages_own_data_is_silent() -> None:
    report = files.validate([REPOSITORY / "src"], Options(environ={}))
    assert [item.rule for item in report.findings] == ["unknown-file"]  # nothing is known to cpt


def test_a_folder_that_cannot_be_listed() -> None:
    checker = files._Checker(Options(environ={}))
    assert list(files.walk.files(Path("/absent/folder"), checker.add_unlisted, files.Counter())) == []
    assert [(item.rule, item.path) for item in checker.found] == [("file-unreadable", "/absent/folder")]
