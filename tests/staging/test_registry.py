import json
from collections.abc import Callable
from pathlib import Path

import pytest

from cpt_launcher.config import read
from cpt_launcher.errors import ConfigError
from cpt_launcher.launch import bundle
from cpt_launcher.layout import Layout
from cpt_launcher.plan import plan
from cpt_launcher.staging import registry

from ..conftest import Outcome

Cpt = Callable[..., Outcome]
LINE = '{"text": "Call me Ishmael."}\n'
THEIRS = (
    '{ "z":{"source" : "/home/x/z.jsonl","file_name":"z.jsonl", "n": 1e5, "own": "\\u00e9"},\n\n\t'
    '"a": {"file_name": "sub/a.jsonl"}   ,\n"odd": 3\n  }\n\n'
)


def test_entries_of_others_stay_to_the_byte(tmp_path: Path) -> None:
    layout = Layout(tmp_path, "")
    layout.registry.write_text(THEIRS)
    assert registry.merge(layout, {"mine": {"file_name": "/m.jsonl"}}, force=False)[0] == "replaced"
    text = layout.registry.read_text()
    assert text.startswith(THEIRS.rstrip().removesuffix("}").rstrip() + ",\n")
    assert json.loads(text) == {**json.loads(THEIRS), "mine": {"file_name": "/m.jsonl"}}
    assert registry.merge(layout, {"mine": {"file_name": "/m.jsonl"}}, force=False)[0] == "identical"
    with pytest.raises(ConfigError, match="differs in file_name"):
        registry.merge(layout, {"z": {"file_name": "/other.jsonl"}}, force=False)
    assert layout.registry.read_text() == text
    registry.merge(layout, {"z": {"file_name": "/other.jsonl"}}, force=True)
    changed = json.loads(layout.registry.read_text())
    assert changed == {**json.loads(text), "z": {"file_name": "/other.jsonl"}}
    assert list(changed) == ["z", "a", "odd", "mine"]
    assert layout.registry.read_text().endswith(text.split("\n\n\t")[1])


def test_an_entry_that_says_the_same_is_left_as_it_is(tmp_path: Path) -> None:
    layout = Layout(tmp_path, "")
    layout.registry.write_text(THEIRS)
    same = {"a": {"file_name": f"{tmp_path}/sub/a.jsonl"}}
    assert registry.merge(layout, same, force=False)[0] == "identical"
    assert layout.registry.read_text() == THEIRS


@pytest.mark.parametrize("text", ["", "{", "[]", "[" * 100_000, '{"a": 1,}', "\udcff"])
def test_what_is_no_registry_is_not_overwritten(tmp_path: Path, text: str) -> None:
    layout = Layout(tmp_path, "")
    layout.registry.write_text(text, errors="surrogateescape")
    for force in (False, True):
        with pytest.raises(ConfigError) as caught:
            registry.merge(layout, {"mine": {"file_name": "/m.jsonl"}}, force=force)
        assert caught.value.problems[0].where == str(layout.registry)
    assert layout.registry.read_text(errors="surrogateescape") == text


@pytest.fixture
def storage(workspace: Path) -> Path:
    (workspace / "my.yaml").write_text((workspace / "my.yaml").read_text().replace("dataset: corpus", "dataset: rel"))
    (workspace / "storage" / "sub").mkdir()
    return workspace / "storage"


def files(folder: Path) -> dict[str, bytes]:
    found = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    return {name: path.read_bytes() for name, path in found.items() if not name.startswith(".cpt/")}


@pytest.mark.parametrize("given", ["rel.jsonl", "sub/theirs.jsonl", "{storage}/sub/theirs.jsonl", "sub"])
def test_an_entry_of_the_storages_own_registry_works(storage: Path, cpt: Cpt, given: str) -> None:
    for name in ("rel.jsonl", "sub/theirs.jsonl"):
        (storage / name).write_text(LINE * 1000)
    fields = {"source": "/etc/passwd", "file_name": given.format(storage=storage), "columns": {"prompt": "text"}}
    (storage / "dataset_info.json").write_text(json.dumps({"rel": fields}))
    before = files(storage)
    checked = cpt("validate", "my.yaml", "--data")
    assert (checked.code, "1,000 documents" in checked.err) == (0, True)
    planned = cpt("run", "my.yaml", "--dry-run")
    assert planned.code == 0
    assert "/etc/passwd" not in planned.out
    assert f"On the storage already:\n  {storage}/" in planned.out
    done = cpt("stage-data", "my.yaml")
    assert done.code == 0
    after = files(storage)
    assert set(after) - set(before) == {"ds_z3_config.json"}
    assert {name: after[name] for name in before} == before
    bundled = bundle.make(storage.parent / "my.yaml", [])
    assert json.loads(bundled.texts["dataset-configs/dataset_info.json"]) == {}


def test_tokens_belong_to_such_an_entrys_data(storage: Path) -> None:
    (storage / "dataset_info.json").write_text('{"rel": {"file_name": "rel.jsonl", "columns": {"prompt": "text"}}}')
    (storage / "rel.jsonl").write_text(LINE)
    config = read.read(storage.parent / "my.yaml")
    first = plan.plan_run(config, {}).tokens
    assert first
    assert plan.plan_run(config, {}).tokens == first
    (storage / "rel.jsonl").write_text(LINE * 2)
    assert plan.plan_run(config, {}).tokens not in (first, None)


def test_held_out_documents_of_such_an_entry(storage: Path, cpt: Cpt) -> None:
    (storage / "rel.jsonl").write_text(LINE * 1000)
    fields = {"file_name": "rel.jsonl", "columns": {"prompt": "text"}}
    (storage / "dataset_info.json").write_text(json.dumps({"rel": fields}))
    config = storage.parent / "my.yaml"
    config.write_text(config.read_text() + "eval: {documents: 100, tail: true}\n")
    assert cpt("stage-data", "my.yaml").code == 0
    after = json.loads((storage / "dataset_info.json").read_text())
    assert after.pop("rel") == fields
    assert len(after) == 2
    assert {entry["file_name"] for entry in after.values()} == {"rel.jsonl"}


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"source": "{storage}/../first.txt", "file_name": "{storage}/team.txt"}, "is not there"),
        ({"source": "/etc/passwd"}, "has no file_name"),
        ({"file_name": "/etc/passwd"}, "not below the storage"),
        ({"file_name": "../first.txt"}, "not below the storage"),
        ({"file_name": "link.txt"}, "not below the storage"),
        ({"file_name": "."}, "not below the storage"),
        ({"file_name": 5}, "has no file_name"),
        ({"file_name": "gone.jsonl"}, "is not there"),
    ],
)
def test_the_storages_own_registry_gives_no_orders(
    storage: Path, cpt: Cpt, tmp_path: Path, fields: dict[str, object], said: str
) -> None:
    (storage.parent / "first.txt").write_text("private\n")
    (storage / "link.txt").symlink_to("/etc/passwd")
    fields = {key: value.format(storage=storage) if isinstance(value, str) else value for key, value in fields.items()}
    (storage / "dataset_info.json").write_text(json.dumps({"rel": {**fields, "columns": {"prompt": "text"}}}))
    before = files(tmp_path)
    for arguments in (["validate", "my.yaml"], ["stage-data", "my.yaml", "--force"], ["run", "my.yaml", "--dry-run"]):
        done = cpt(*arguments)
        assert done.code == 3
        assert said in done.out + done.err
    assert files(tmp_path) == before
