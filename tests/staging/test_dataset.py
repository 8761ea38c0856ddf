import json
from pathlib import Path

import pytest

from cpt_launcher.config import names
from cpt_launcher.errors import ConfigError, DataError
from cpt_launcher.staging import dataset
from cpt_launcher.staging.dataset import Copy, Entry

STORAGE = Path("/storage")


def registry(folder: Path, **entries: object) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / "dataset_info.json"
    path.write_text(json.dumps(entries))
    return path


def test_where_an_entrys_bytes_come_from(tmp_path: Path) -> None:
    path = registry(
        tmp_path,
        beside={"file_name": "a.jsonl", "columns": {"prompt": "text"}},
        absolute={"file_name": "/data/b.jsonl"},
        remote={"source": "https://host/c.jsonl", "file_name": "c.jsonl"},
        hub={"hf_hub_url": "someone/corpus"},
    )
    entries = dataset.read_registry(path)
    assert {name: entry.source for name, entry in entries.items()} == {
        "beside": f"{tmp_path}/a.jsonl",
        "absolute": "/data/b.jsonl",
        "remote": "https://host/c.jsonl",
        "hub": None,
    }
    assert entries["beside"].staged(STORAGE) == {"file_name": "/storage/a.jsonl", "columns": {"prompt": "text"}}
    assert entries["remote"].staged(STORAGE) == {"file_name": "/storage/c.jsonl"}
    assert entries["hub"].staged(STORAGE) == {"hf_hub_url": "someone/corpus"}


def test_the_first_registry_that_has_an_entry_wins(tmp_path: Path) -> None:
    mine, shipped, storage = (tmp_path / name for name in ("mine", "shipped", "storage"))
    registry(mine, a={"file_name": "mine.jsonl"})
    registry(shipped, a={"file_name": "shipped.jsonl"}, b={"file_name": "b.jsonl"})
    registry(storage, a={"file_name": "x"}, c={"file_name": f"{storage}/c.jsonl"})
    found = dataset.find(["a", "b", "c"], [mine, shipped], storage)
    assert [entry.source for entry in found] == [f"{mine}/mine.jsonl", f"{shipped}/b.jsonl", f"{storage}/c.jsonl"]
    assert [entry.on_storage for entry in found] == [False, False, True]


def test_an_unknown_dataset_names_the_near_one(tmp_path: Path) -> None:
    registry(tmp_path, my_cpt_c4={"file_name": "x"})
    with pytest.raises(ConfigError, match="no dataset 'my_cpt_c5' is registered") as caught:
        dataset.find(["my_cpt_c5"], [tmp_path], tmp_path / "absent")
    assert caught.value.problems[0].hint == "did you mean 'my_cpt_c4'?"


@pytest.mark.parametrize(
    ("content", "what"),
    [("[]", "maps names to entries"), ('{"a": 1}', "not a mapping"), ('{"a": {}}', "has no file"), ("{", "not valid")],
)
def test_a_bad_registry(tmp_path: Path, content: str, what: str) -> None:
    path = tmp_path / "dataset_info.json"
    path.write_text(content)
    with pytest.raises(ConfigError, match=what):
        dataset.read_registry(path)


def entry(source: Path) -> Entry:
    return Entry("a", {"file_name": source.name}, Path("r.json"), str(source))


def test_a_folder_is_copied_shard_by_shard_without_foreign_files(tmp_path: Path) -> None:
    folder = tmp_path / "shards"
    (folder / "deep").mkdir(parents=True)
    for hidden in (".secret", "_temporary", "deep/.git"):
        (folder / hidden).mkdir()
        (folder / hidden / "keys.jsonl").touch()
    for name in ("2.jsonl", "1.jsonl", "_SUCCESS", ".hidden", "deep/3.jsonl"):
        (folder / name).touch()
    assert dataset.copies(entry(folder), STORAGE) == tuple(
        Copy(f"{folder}/{name}", STORAGE / "shards" / name, shard_of=(str(folder), STORAGE / "shards"))
        for name in ("1.jsonl", "2.jsonl", "deep/3.jsonl")
    )


def test_data_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="the data of 'a' is not there"):
        dataset.copies(entry(tmp_path / "absent.jsonl"), STORAGE)


def test_a_link_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "shards"
    (folder / "deep").mkdir(parents=True)
    (folder / "1.jsonl").touch()
    (folder / "2.jsonl").symlink_to("1.jsonl")
    (folder / ".cache").symlink_to("/etc")
    assert [Path(copy.source).name for copy in dataset.copies(entry(folder), STORAGE)] == ["1.jsonl", "2.jsonl"]
    for to in ("/etc/passwd", "/etc", "../../private.jsonl", str(tmp_path)):
        (folder / "deep" / "3.jsonl").symlink_to(to)
        with pytest.raises(DataError, match=r"the link deep/3\.jsonl leads out of the folder") as caught:
            dataset.copies(entry(folder), STORAGE)
        assert "put the file itself there" in caught.value.problems[0].hint
        (folder / "deep" / "3.jsonl").unlink()


def test_what_else_a_folder_must_not_hold(tmp_path: Path) -> None:
    folder = tmp_path / "shards"
    folder.mkdir()
    for name, said in {
        "a\x1b[2J.jsonl": "control characters",
        "config": "without ending",
        "b.csv": "of one kind",
    }.items():
        (folder / "1.jsonl").touch()
        (folder / name).touch()
        with pytest.raises(DataError, match=said):
            dataset.copies(entry(folder), STORAGE)
        (folder / name).unlink()
    (folder / "1.jsonl").unlink()
    with pytest.raises(DataError, match="the folder is empty"):
        dataset.copies(entry(folder), STORAGE)


def test_a_folder_with_the_storage_in_it(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").touch()
    with pytest.raises(DataError, match="would be staged into itself"):
        dataset.copies(entry(tmp_path), tmp_path / "storage")


def test_a_snapshot_of_the_hub_is_a_folder_of_links(tmp_path: Path) -> None:
    cache = tmp_path / "hub" / "datasets--some--corpus"
    snapshot, blobs = cache / "snapshots" / "abc", cache / "blobs"
    (snapshot / "data").mkdir(parents=True)
    blobs.mkdir()
    for number, name in enumerate(("README.md", "LICENSE", ".gitattributes", "data/1.jsonl", "data/2.jsonl")):
        (blobs / f"hash{number}").write_text('{"text": "a"}\n')
        (snapshot / name).symlink_to(f"{'../' * name.count('/')}../../blobs/hash{number}")
    found = dataset.copies(entry(snapshot), STORAGE)
    assert [Path(copy.source).relative_to(snapshot).as_posix() for copy in found] == ["data/1.jsonl", "data/2.jsonl"]
    (tmp_path / "private.jsonl").touch()
    (snapshot / "data" / "3.jsonl").symlink_to("../../../../../private.jsonl")
    with pytest.raises(DataError, match=r"the link data/3\.jsonl leads out of the folder"):
        dataset.copies(entry(snapshot), STORAGE)
    (snapshot / "data" / "3.jsonl").unlink()
    for number in (3, 4):
        (blobs / f"hash{number}").rename(tmp_path / f"hash{number}")
    (blobs / "hash0").unlink()
    for rest in blobs.iterdir():
        rest.unlink()
    blobs.rmdir()
    blobs.symlink_to(tmp_path)  # a cache that leads elsewhere is none
    with pytest.raises(DataError, match="leads out of the folder"):
        dataset.copies(entry(snapshot), STORAGE)


@pytest.mark.parametrize(
    ("name", "tells"),
    [
        ("README", True), ("README.md", True), ("readme.txt", True), ("LICENSE-MIT", True), ("LICENSE.txt", True),
        ("CITATION.cff", True), ("sub/Readme.rst", True), ("dataset_infos.json", True), ("readme.jsonl", False),
        ("license_agreement_7.txt", False), ("license-7.txt", False), ("notice.json", False), ("read.me", False),
        ("1.parquet", False),
    ],
)  # fmt: skip
def test_what_tells_of_data_and_is_none(name: str, tells: bool) -> None:
    assert names.is_documentation(name) is tells
