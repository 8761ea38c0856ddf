import json
from collections.abc import Callable
from pathlib import Path

import pytest

from cpt_launcher.config import names
from cpt_launcher.errors import ConfigError
from cpt_launcher.layout import Layout
from cpt_launcher.staging import places
from cpt_launcher.staging.dataset import Copy

from ..conftest import Outcome

Cpt = Callable[..., Outcome]


def refused(storage: Path, *targets: str, run: str = "") -> list[str]:
    try:
        places.refuse([Copy("/data/x", storage / target) for target in targets], Layout(storage, run))
    except ConfigError as error:
        return [problem.what for problem in error.problems]
    return []


@pytest.mark.parametrize(
    "target",
    [".", "..", "../x.jsonl", ".x.jsonl", "models", "Models/x.jsonl", "tokenized/x.jsonl", "mlartifacts/x.json",
     "mlflow.db", "dataset_info.json", "c4/../../x.jsonl", "c4/x", "c4/x.sh", "c4/a\x1b[2J.jsonl", "a\nb.jsonl",
     "authorized_keys", "first/x.jsonl", "/etc/x.jsonl"],
)  # fmt: skip
def test_where_nothing_is_staged(tmp_path: Path, target: str) -> None:
    assert len(refused(tmp_path, target, run="first")) == 1


def test_where_data_is_staged(tmp_path: Path) -> None:
    assert refused(tmp_path, "c.jsonl", "c4/1.parquet", "c4/deep/2.parquet", "_x.txt", "ds_z3_config.json") == []
    assert refused(tmp_path / "not" / "there", "c.jsonl") == []


def test_links_and_runs_on_the_way(tmp_path: Path) -> None:
    storage, link = tmp_path / "storage", tmp_path / "link"
    (storage / "run" / "cpt").mkdir(parents=True)
    (storage / "run" / "cpt" / "run.json").touch()
    (storage / "models").mkdir()
    link.symlink_to(storage)
    for name, to in {"out": "..", "round": "round", "model": "models", "run2": "run/output", "c4": "data"}.items():
        (storage / name).symlink_to(to)
    assert refused(link, "c4/a.jsonl", "b.jsonl") == []
    assert "leads out of the storage" in refused(storage, "out/a.jsonl")[0]
    assert "keeps something else" in refused(storage, "model/a.jsonl")[0]
    for target in ("run/a.jsonl", "run/output/a.jsonl", "run2/a.jsonl"):
        assert refused(storage, target) == ["nothing can be staged into the folder of a run"]


def test_a_runs_name() -> None:
    taken = ["models", "tokenized", "MLartifacts", "mlflow.db", "dataset_info.json", "a.jsonl", "x.json", "b.PARQUET"]
    assert [name for name in taken if names.wrong_run(name) is None] == []
    assert [name for name in ("first", "gemma3.1b", "v1.0", "json") if names.wrong_run(name)] == []


def everything(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file() and ".cpt/" not in str(path)}


@pytest.mark.parametrize("name", [".", "./", "..", "models", ".hidden", "oldrun", "first"])
def test_a_folders_name_on_the_storage_deletes_nothing(workspace: Path, tmp_path: Path, cpt: Cpt, name: str) -> None:
    storage, source = workspace / "storage", tmp_path / "src"
    source.mkdir()
    (source / "a.jsonl").write_text('{"text": "a"}\n')
    for path in ("models.txt", "models/m/model.safetensors", "oldrun/cpt/run.json", "oldrun/output/model.safetensors"):
        (storage / path).parent.mkdir(parents=True, exist_ok=True)
        (storage / path).write_text("precious")
    (workspace / "precious.txt").write_text("precious")
    entry = {"corpus": {"source": str(source), "file_name": name, "columns": {"prompt": "text"}}}
    (workspace / "dataset-configs" / "dataset_info.json").write_text(json.dumps(entry))
    before = everything(tmp_path)
    checked = cpt("validate", "my.yaml")
    if name != "oldrun":  # which is a run of the storage's, and validate does not look there
        assert "error[registry-file]" in checked.out
        assert "dataset_info.json:1:" in checked.out
        assert checked.code == 3
    for force in ([], ["--force"]):
        done = cpt("stage-data", "my.yaml", *force)
        assert done.code in (2, 3)
        assert '"file_name"' in done.err
        assert "--force" not in done.err
    assert everything(tmp_path) == before


def test_force_removes_only_what_came_from_that_very_folder(workspace: Path, tmp_path: Path, cpt: Cpt) -> None:
    storage = workspace / "storage"
    for folder in ("src", "src2"):
        (tmp_path / folder).mkdir()
        for name in ("a.jsonl", f"{folder}.jsonl"):
            (tmp_path / folder / name).write_text('{"text": "Call me Ishmael."}\n' * 100)

    def staged(folder: str, *options: str) -> Outcome:
        entry = {"corpus": {"source": str(tmp_path / folder), "file_name": "c4", "columns": {"prompt": "text"}}}
        (workspace / "dataset-configs" / "dataset_info.json").write_text(json.dumps(entry))
        return cpt("stage-data", "my.yaml", *options)

    assert staged("src2").code == 0
    for options in ([], ["--force"]):
        done = staged("src", *options)
        assert done.code == 2
        assert "next:  move it away\n" in done.err
        assert (storage / "c4" / "src2.jsonl").is_file()
    (tmp_path / "src2" / "src2.jsonl").unlink()
    (storage / "c4" / "src2.jsonl").write_text("changed by somebody since")
    assert staged("src2", "--force").code == 2
    assert (storage / "c4" / "src2.jsonl").read_text() == "changed by somebody since"


def test_a_run_and_a_dataset_of_one_name(workspace: Path, tmp_path: Path, cpt: Cpt) -> None:
    (tmp_path / "first").mkdir()
    (tmp_path / "first" / "a.jsonl").write_text('{"text": "a"}\n')
    entry = {"corpus": {"source": str(tmp_path / "first"), "columns": {"prompt": "text"}}}
    (workspace / "dataset-configs" / "dataset_info.json").write_text(json.dumps(entry))
    assert "the run has that name" in cpt("validate", "my.yaml").out
    assert cpt("run", "my.yaml", "--dry-run").code == 3
    assert cpt("run", "my.yaml", "name=second", "--dry-run").code == 0
    (tmp_path / "first" / "a.jsonl").write_text('{"text": "Call me Ishmael."}\n' * 100)
    (workspace / "other.yaml").write_text((workspace / "my.yaml").read_text().replace("name: first", "name: second"))
    assert cpt("stage-data", "other.yaml").code == 0
    (workspace / "c.jsonl").write_text('{"text": "Call me Ishmael."}\n' * 100)
    registry = {"mine": {"source": str(workspace / "c.jsonl"), "columns": {"prompt": "text"}}}
    (workspace / "dataset-configs" / "dataset_info.json").write_text(json.dumps(registry))
    done = cpt("run", "my.yaml", "dataset=mine", "--dry-run")
    assert (done.code, "has the name of the run 'first'" in done.err) == (2, True)
