"""Which documents are held out: by the slices that `datasets` makes of them, on files as LLaMA-Factory reads them."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from cpt_launcher.config.launcher import Evaluation
from cpt_launcher.errors import ConfigError
from cpt_launcher.layout import Layout
from cpt_launcher.plan import heldout
from cpt_launcher.plan.heldout import Counted
from cpt_launcher.staging import manifest
from cpt_launcher.staging.stage import stage

from ..conftest import Outcome

Cpt = Callable[..., Outcome]
ALL = [str(number) for number in range(135)]


def sides(tmp_path: Path, found: heldout.Split, documents: int = 135) -> tuple[list[str], list[str]]:
    """The texts of what is trained on and of what is held out."""
    datasets = pytest.importorskip("datasets")
    file = tmp_path / "a.jsonl"
    file.write_text("".join(f'{{"text": "{number}"}}\n' for number in range(documents)))
    trained, held_out = (
        datasets.load_dataset("json", data_files=[str(file)], split=side["split"], cache_dir=str(tmp_path))["text"]
        for side in (found.train, found.held_out)
    )
    return trained, held_out


def drawn(wanted: Evaluation, documents: int = 135, seed: int = 42, **fields: object) -> heldout.Split:
    found = heldout.split("a", {"file_name": "a.jsonl", **fields}, wanted, Counted(documents, "3fa9c1"), seed)
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("wanted", "first", "last", "names"),
    [
        (Evaluation(percent=5, tail=True), "train[:95%]", "train[95%:]", ("a@but-last-5pc", "a@last-5pc")),
        (Evaluation(documents=7, tail=True), "train[:-7]", "train[-7:]", ("a@but-last-7", "a@last-7")),
    ],
)
def test_the_last_documents(tmp_path: Path, wanted: Evaluation, first: str, last: str, names: tuple[str, str]) -> None:
    found = heldout.split("a", {"file_name": "a.jsonl"}, wanted, None, 42)
    assert found is not None
    assert (found.train["split"], found.held_out["split"], found.names) == (first, last, names)
    trained, held_out = sides(tmp_path, found)
    assert (len(held_out), [*trained, *held_out]) == (7, ALL)


@pytest.mark.parametrize(
    ("wanted", "count", "names"),
    [
        (Evaluation(percent=5), 7, ("a@but-random-5pc-of-135-seed-42-3fa9c1", "a@random-5pc-of-135-seed-42-3fa9c1")),
        (Evaluation(documents=30), 30, ("a@but-random-30-of-135-seed-42-3fa9c1", "a@random-30-of-135-seed-42-3fa9c1")),
        (
            Evaluation(documents=134),
            134,
            ("a@but-random-134-of-135-seed-42-3fa9c1", "a@random-134-of-135-seed-42-3fa9c1"),
        ),
    ],
)
def test_random_documents_are_on_one_side_only(
    tmp_path: Path, wanted: Evaluation, count: int, names: tuple[str, str]
) -> None:
    found = drawn(wanted)
    assert found.names == names
    trained, held_out = sides(tmp_path, found)
    assert len(held_out) == count
    assert held_out != ALL[-count:]
    assert sorted([*trained, *held_out], key=int) == ALL


def test_the_sample_is_the_seeds() -> None:
    seven = Evaluation(documents=7)
    assert drawn(seven) == drawn(seven)
    assert drawn(seven).held_out["split"] == (
        "train[41:42]+train[49:50]+train[58:59]+train[82:83]+train[106:107]+train[113:114]+train[121:122]"
    )
    assert drawn(seven, seed=43).held_out != drawn(seven).held_out
    assert heldout.split("b", {"file_name": "a.jsonl"}, seven, Counted(135), 42) != drawn(seven)
    assert str(drawn(seven)) == "holds out 7 of the 135 documents of a, at random (seed 42)"


def test_each_document_is_as_likely() -> None:
    counts = [0] * 20
    for seed in range(4000):
        for begin, end in heldout.sample(20, 5, str(seed)):
            assert end == begin + 1
            counts[begin] += 1
    assert sum(counts) == 4000 * 5
    assert all(abs(count - 1000) < 5 * (4000 * 0.25 * 0.75) ** 0.5 for count in counts)


def test_a_large_sample_is_of_random_stretches(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(heldout, "MOST_STRETCHES", 4)
    found = drawn(Evaluation(documents=30))
    assert str(found) == "holds out 30 of the 135 documents of a, at random in 4 stretches (seed 42)"
    assert len(heldout.sample(135, 30, "42 a")) == 4
    trained, held_out = sides(tmp_path, found)
    assert len(held_out) == 30
    assert sorted([*trained, *held_out], key=int) == ALL
    for seed in range(500):
        spans = heldout.sample(135, 30, str(seed))
        assert sum(end - begin for begin, end in spans) == 30
        assert all(0 <= begin < end <= 135 for begin, end in spans)
        assert all(before[1] <= after[0] for before, after in itertools.pairwise(spans))


@pytest.mark.parametrize(("documents", "held_out"), [(140, 7), (100, 4)])
def test_a_wrong_count_mixes_nothing(tmp_path: Path, documents: int, held_out: int) -> None:
    """What was not counted is trained on, and what is not there is not held out."""
    found = sides(tmp_path, drawn(Evaluation(documents=7)), documents)
    assert len(found[1]) == held_out
    assert sorted([*found[0], *found[1]], key=int) == [str(number) for number in range(documents)]


def test_what_cannot_be_split() -> None:
    some = Evaluation(documents=7)
    assert heldout.split("a", {"split": "test[:10]"}, some, Counted(135), 42) is None
    assert heldout.split("a", {"cloud_file_name": "s3://b/a.json"}, some, Counted(135), 42) is None
    assert heldout.split("a", {}, Evaluation(datasets=("b",)), Counted(135), 42) is None
    with pytest.raises(ConfigError, match="leaves nothing to train on: 'a' has 7 documents") as caught:
        drawn(some, documents=7)
    assert caught.value.problems[0].hint == "hold fewer out: eval: {documents: 1}"
    with pytest.raises(ConfigError, match=r"out 1 document leaves nothing to train on: 'a' has 1 document$") as caught:
        drawn(Evaluation(percent=1), documents=1)
    assert "eval: none" in caught.value.problems[0].hint


def test_held_out_documents_are_not_repeated() -> None:
    found = drawn(Evaluation(documents=7), num_samples=1000)
    assert (found.train["num_samples"], "num_samples" in found.held_out) == (1000, False)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (None, [(0, 100)]),
        ("train[:95%]", [(0, 95)]),
        ("train[-7:]", [(93, 100)]),
        ("train[3:4] + train[10:]", [(3, 4), (10, 100)]),
        ("train[0:500]", [(0, 100)]),
        ("train[a:b]", None),
    ],
)
def test_the_rows_of_a_split(text: str | None, expected: object) -> None:
    assert heldout.spans(text, 100) == expected


FILES = {
    "blank.jsonl": '{"text": "a"}\n\n{"text": "b"}\n   \n{"text": ""}\n{"text": null}\n\n',
    "lines.json": '{"text": "a"}\n\n{"text": "b"}\n',
    "array.json": '[{"text": "a"},\n{"text": "b"}, {"text": null}]',
    "quoted.csv": 'text,id\na,1\n\n"b\n\nc",2\n,3\nNA,4\n,\n',
}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # datasets leaves its CSV file open
def test_documents_are_counted_as_datasets_numbers_them(tmp_path: Path, name: str) -> None:
    datasets = pytest.importorskip("datasets")
    from cpt_launcher.staging.dataset import Copy

    source, storage = tmp_path / name, tmp_path / "storage"
    source.write_text(FILES[name])
    storage.mkdir()
    stage([Copy(str(source), storage / name, "text")], {}, storage, report=lambda _: None)
    record = manifest.read(Layout(storage, ""))[name]
    kind = "csv" if name.endswith("csv") else "json"
    there = datasets.load_dataset(kind, data_files=[str(source)], split="train", cache_dir=str(tmp_path / "cache"))
    assert heldout.counted(record, name) == len(there)


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
def test_rows_of_tables(tmp_path: Path, kind: str) -> None:
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    from cpt_launcher.staging.dataset import Copy

    table = pa.table({"text": ["a", "", None, "d"]})
    source, storage = tmp_path / f"t.{kind}", tmp_path / "storage"
    storage.mkdir()
    if kind == "parquet":
        pq.write_table(table, source)
    else:
        with pa.ipc.new_stream(str(source), table.schema) as writer:
            writer.write_table(table)
    stage([Copy(str(source), storage / source.name, "text")], {}, storage, report=lambda _: None)
    assert heldout.counted(manifest.read(Layout(storage, ""))[source.name], source.name) == 4


def test_the_sample_is_drawn_once_the_data_is_staged(cpt: Cpt, workspace: Path, stand_in: Callable[[], object]) -> None:
    registry = workspace / "storage" / "dataset_info.json"
    before = cpt("run", "my.yaml", "eval={share: 0.05}", "--dry-run").out
    assert "holds out 5% of corpus at random (seed 42), drawn when the data is staged" in before
    assert "eval_dataset: corpus@random-5pc-seed-42" in before
    assert cpt("stage-data", "my.yaml").code == 0
    assert list(json.loads(registry.read_text())) == ["corpus"]
    done = cpt("run", "my.yaml", "eval={share: 0.05}")
    assert "holds out 5 of the 100 documents of corpus, at random (seed 42)" in done.err
    named = list(json.loads(registry.read_text()))[1:]
    assert [re.sub("-[0-9a-f]{6}$", "", name) for name in named] == [
        "corpus@but-random-5pc-of-100-seed-42", "corpus@random-5pc-of-100-seed-42",
    ]  # fmt: skip
    text = (workspace / "storage" / "first" / "cpt" / "train.yaml").read_text()
    assert f"dataset: {named[0]}" in text
    assert f"eval_dataset: {named[1]}" in text
    assert f"eval_dataset: {named[1]}" in cpt("run", "my.yaml", "eval={share: 0.05}", "name=b", "--dry-run").out
    (workspace / "dataset-configs" / "corpus.jsonl").write_text('{"text": "Call me Ishmael."}\n' * 120)
    done = cpt("run", "my.yaml", "eval={share: 0.05}", "train.seed=7", "name=second")
    assert "holds out 6 of the 120 documents of corpus, at random (seed 7)" in done.err


def test_a_folder_is_counted_whole(cpt: Cpt, workspace: Path) -> None:
    folder = workspace / "dataset-configs" / "shards"
    folder.mkdir()
    for number in range(3):
        (folder / f"{number}.jsonl").write_text('{"text": "Call me Ishmael."}\n' * 10)
    entry = {"corpus": {"source": "shards", "file_name": "shards", "columns": {"prompt": "text"}}}
    (folder.parent / "dataset_info.json").write_text(json.dumps(entry))
    assert cpt("stage-data", "my.yaml").code == 0
    plan = ("run", "my.yaml", "eval={documents: 3}", "--dry-run")
    assert "holds out 3 of the 30 documents of corpus" in cpt(*plan).out
    (folder / "3.jsonl").write_text('{"text": "Call me Ishmael."}\n')
    assert "drawn when the data is staged" in cpt(*plan).out


def test_what_nobody_counts_is_not_drawn_from(cpt: Cpt, workspace: Path) -> None:
    storage = workspace / "storage"
    (storage / "theirs.jsonl").write_text('{"text": "Call me Ishmael."}\n' * 10)
    entry = {"theirs": {"file_name": "theirs.jsonl", "columns": {"prompt": "text"}}}
    (storage / "dataset_info.json").write_text(json.dumps(entry))
    done = cpt("run", "my.yaml", "dataset=theirs", "eval={share: 0.1}", "--dry-run")
    assert (done.code, "cpt did not stage and count its documents" in done.err) == (2, True)
    assert "tail: true" in done.err
    last = cpt("run", "my.yaml", "dataset=theirs", "eval={share: 0.1, tail: true}", "--dry-run")
    assert (last.code, "holds out the last 10% of theirs" in last.out) == (0, True)


def test_what_is_trained_on_is_not_held_out(cpt: Cpt, workspace: Path) -> None:
    done = cpt("run", "my.yaml", "eval={dataset: corpus}", "--dry-run")
    assert (done.code, "corpus is trained on" in done.err) == (2, True)


def test_tail_is_of_a_part(cpt: Cpt, workspace: Path) -> None:
    done = cpt("validate", "my.yaml", "eval={dataset: corpus, tail: true}")
    assert (done.code, "eval.tail goes with share or documents" in done.out + done.err) == (2, True)


def test_text_files_without_text_are_no_rows(cpt: Callable[..., Outcome], workspace: Path) -> None:
    """They are left out of the records that staging makes, so that none of them can be drawn."""
    folder = workspace / "dataset-configs" / "texts"
    folder.mkdir()
    for number in range(20):
        (folder / f"{number}.txt").write_text(f"document {number}" if number % 10 else "\n")
    (workspace / "dataset-configs" / "dataset_info.json").write_text(json.dumps({"corpus": {"file_name": "texts"}}))
    assert cpt("stage-data", "my.yaml").code == 0
    planned = cpt("run", "my.yaml", "eval={share: 0.5}", "--dry-run")
    assert "holds out 9 of the 18 documents of corpus" in planned.out + planned.err
