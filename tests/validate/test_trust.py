"""What a config lets run is said, once and at its line, until the user says that it is meant."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cpt_launcher.validate import files, report
from cpt_launcher.validate.files import Options

CONFIG = "name: r\nstorage: /s\nmodel: some/model\ndataset: corpus\nresources: {gpus: 2}\n"


def found(folder: Path, text: str, *overrides: str) -> list[str]:
    path = folder / "x.yaml"
    path.write_text(text)
    return report.as_text(files.validate([path], Options(overrides, environ={})).findings).splitlines()


CODE = "train:\n  bf16: true\n  trust_remote_code: true"


def test_the_warning_names_the_model_and_what_to_do(workspace: Path) -> None:
    (line,) = found(workspace, CONFIG + CODE)
    assert line.startswith(f"{workspace}/x.yaml:8:3: warning[remote-code]: ")
    assert "some/model" in line
    assert "train.model_revision" in line


@pytest.mark.parametrize(
    ("mark", "overrides", "count"),
    [
        ("  # cpt: allow remote-code", (), 0),
        ("  # cpt: allow remote-code for some/model", (), 0),
        ("  # ours; cpt: allow remote-code", (), 1),
        ("  # cpt: allow remote-code for some/mode", (), 1),
        ("  # cpt: allow remote-code for other/model", (), 1),
        ("  # cpt: allow env-program", (), 1),
        ("  # cpt: allow remote-code for some/model", ("model=other/model",), 1),
        ("  # cpt: allow remote-code for some/model", ("model=some/model-2",), 1),
        ("  # cpt: allow remote-code for some/model", ("train.trust_remote_code=true",), 1),
        ("\n  # cpt: allow remote-code", (), 1),
    ],
)
def test_a_mark_on_the_line_silences_it(workspace: Path, mark: str, overrides: tuple[str, ...], count: int) -> None:
    assert len(found(workspace, CONFIG + CODE + mark, *overrides)) == count


def test_no_mark_silences_an_error(workspace: Path) -> None:
    text = CONFIG + "train:\n  bf16: true\n  cutof_len: 1  # cpt: allow unknown-argument"
    assert len(found(workspace, text)) == 1


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"script_url": "script.py"}, "error[remote-code]: trust_remote_code runs the script 'script.py'"),
        (
            {"hf_hub_url": "a/b"},
            "warning[remote-code]: trust_remote_code runs what script the dataset repository 'a/b'",
        ),
        (
            {"ms_hub_url": "a/b"},
            "warning[remote-code]: trust_remote_code runs what script the dataset repository 'a/b'",
        ),
        (
            {"om_hub_url": "a/b"},
            "warning[remote-code]: trust_remote_code runs what script the dataset repository 'a/b'",
        ),
        ({"file_name": "corpus.jsonl"}, None),
    ],
)
def test_a_dataset_s_code(workspace: Path, fields: dict[str, str], expected: str | None) -> None:
    entry = {"corpus": {**fields, "columns": {"prompt": "text"}}}
    (workspace / "dataset-configs" / "dataset_info.json").write_text(json.dumps(entry))
    mark = "  # cpt: allow remote-code for some/model"
    lines = [line for line in found(workspace, CONFIG + CODE + mark) if "remote-code" in line]
    assert [line.split(": ", 1)[0] for line in lines] == [f"{workspace}/x.yaml:4:1"] * (expected is not None)
    assert all(str(expected) in line for line in lines)
    without = found(workspace, CONFIG + "train: {bf16: true}")
    assert not [line for line in without if "remote-code" in line]


def test_variables_that_choose_programs(workspace: Path) -> None:
    text = CONFIG + "train: {bf16: true}\nenv:\n"
    text += "  LD_PRELOAD: /x.so\n  NCCL_DEBUG: INFO\n  HF_ENDPOINT: http://x  # cpt: allow env-program\n"
    (line,) = found(workspace, text)
    assert line.startswith(f"{workspace}/x.yaml:8:3: warning[env-program]: LD_PRELOAD ")
    assert found(workspace, CONFIG + "train: {bf16: true}", "env.LD_PRELOAD=/x.so") == []


def test_a_model_s_folder(workspace: Path) -> None:
    model = workspace / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    (model / "tokenizer_config.json").write_text('{"chat_template": [{"name": "../x", "template": ""}]}')
    (line,) = found(workspace, CONFIG.replace("some/model", str(model)) + "train: {bf16: true}")
    assert line.startswith(f"{workspace}/x.yaml:3:1: error[model-files]: a chat template is called '../x'")
