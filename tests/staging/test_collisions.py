"""Two entries of one source never end as one file of the storage."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from ..conftest import Outcome

Cpt = Callable[..., Outcome]
TEXT = "One line.\nAnd another.\n"


@pytest.fixture
def register(workspace: Path) -> Callable[..., None]:
    """Makes the registry one of these entries, all of the same texts, and the config one of all of them."""
    (workspace / "texts").mkdir()
    for name in ("a.txt", "b.txt"):
        (workspace / "texts" / name).write_text(TEXT)
    config = (workspace / "my.yaml").read_text()

    def write(**entries: dict[str, object]) -> None:
        fields = {name: {"source": "../texts", **more} for name, more in entries.items()}
        (workspace / "dataset-configs" / "dataset_info.json").write_text(json.dumps(fields))
        (workspace / "my.yaml").write_text(config.replace("dataset: corpus", f"dataset: [{', '.join(entries)}]"))

    return write


OTHERS: list[tuple[dict[str, object], str]] = [
    ({"per_line": True}, "per_line"),
    ({"columns": {"prompt": "body"}}, "their text column"),
    ({"columns": {"prompt": "body"}, "per_line": True}, "their text column and per_line"),
]


@pytest.mark.parametrize(("other", "differing"), OTHERS)
def test_entries_of_one_config(
    cpt: Cpt, workspace: Path, register: Callable[..., None], other: dict[str, object], differing: str
) -> None:
    register(mine={}, lines=other)
    place = workspace / "storage" / "texts" / "texts.jsonl"
    said = f"'mine' and 'lines' would both be staged as {place}, and differ in {differing}"
    commands = [("validate", "my.yaml"), ("plan", "my.yaml"), ("stage-data", "my.yaml")]
    for command in [*commands, ("stage-data", "--storage", str(workspace / "storage"))]:
        done = cpt(*command)
        assert (done.code in (2, 3), said in done.out + done.err) == (True, True), done
        assert 'give one entry another "file_name"' in done.out + done.err
    assert list((workspace / "storage").iterdir()) == []
    register(mine={}, lines={**other, "file_name": "lines"})
    assert cpt("stage-data", "my.yaml").code == 0


def test_entries_that_agree_share_a_file(cpt: Cpt, workspace: Path, register: Callable[..., None]) -> None:
    register(mine={}, same={})
    assert [cpt("stage-data", "my.yaml").code for _ in range(2)] == [0, 0]


@pytest.mark.parametrize(("other", "differing"), OTHERS)
def test_an_entry_that_is_staged_later(
    cpt: Cpt, workspace: Path, register: Callable[..., None], other: dict[str, object], differing: str
) -> None:
    del differing
    place = workspace / "storage" / "texts" / "texts.jsonl"
    register(mine={})
    assert cpt("stage-data", "my.yaml").code == 0
    before = place.read_bytes()
    register(lines=other)
    for _ in range(2):
        done = cpt("stage-data", "my.yaml")
        said = "a file of this name that entry 'mine' of the storage's registry uses has other content"
        assert (done.code, said in done.err, place.read_bytes() == before) == (2, True, True), done
    assert cpt("stage-data", "my.yaml", "--force").code == 0
    assert place.read_bytes() != before


def test_an_entry_that_its_owner_changed(cpt: Cpt, workspace: Path, register: Callable[..., None]) -> None:
    register(mine={})
    assert cpt("stage-data", "my.yaml").code == 0
    register(mine={"per_line": True})
    done = cpt("stage-data", "my.yaml")
    assert (done.code, "replaced" in done.err, "(4 documents" in done.err) == (0, True, True), done


def test_a_source_that_grew_is_staged_for_all_who_use_it(
    cpt: Cpt, workspace: Path, register: Callable[..., None]
) -> None:
    register(mine={}, same={})
    assert cpt("stage-data", "my.yaml").code == 0
    (workspace / "texts" / "c.txt").write_text(TEXT)
    register(same={})
    done = cpt("stage-data", "my.yaml")
    assert (done.code, "(3 documents" in done.err) == (0, True), done


def test_two_columns_of_one_file_that_is_copied_as_it_is(cpt: Cpt, workspace: Path) -> None:
    folder = workspace / "dataset-configs"
    (folder / "corpus.jsonl").write_text('{"text": "Call me Ishmael.", "summary": "A name."}\n' * 100)
    entries = {
        name: {"file_name": "corpus.jsonl", "columns": {"prompt": column}}
        for name, column in (("corpus", "text"), ("short", "summary"))
    }
    (folder / "dataset_info.json").write_text(json.dumps(entries))
    assert cpt("stage-data", "my.yaml", "dataset=[corpus, short]").code == 0
    staged = json.loads((workspace / "storage" / "dataset_info.json").read_text())
    assert staged["corpus"]["file_name"] == staged["short"]["file_name"]
