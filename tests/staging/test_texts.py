"""Text files: what is a document of them, from the registry to LLaMA-Factory's loader."""

from __future__ import annotations

import gzip
import io
import json
import re
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from cpt_launcher.config import read
from cpt_launcher.errors import DataError
from cpt_launcher.launch import bundle, tokenize
from cpt_launcher.layout import Layout
from cpt_launcher.plan import amount
from cpt_launcher.plan.plan import plan_run
from cpt_launcher.staging import corpus, manifest, reading, stage, texts
from cpt_launcher.staging.dataset import Copy
from cpt_launcher.staging.records import Report

from ..conftest import Outcome

Cpt = Callable[..., Outcome]
BOOK = "# A title\r\n\r\nA line.\nAnother, and a last one.\n"
PLAIN = BOOK.replace("\r\n", "\n")


@pytest.fixture
def register(workspace: Path) -> Callable[..., None]:
    """Makes the config's dataset an entry with these fields."""

    def write(**fields: object) -> None:
        (workspace / "dataset-configs" / "dataset_info.json").write_text(json.dumps({"corpus": fields}))

    return write


@pytest.fixture
def folder(workspace: Path) -> Path:
    """Three documents, packed and not, one without text, and what tells of them."""
    made = workspace / "texts"
    (made / "deep").mkdir(parents=True)
    (made / "a.txt").write_bytes(b"\xef\xbb\xbf" + BOOK.encode())
    (made / "b.txt.gz").write_bytes(gzip.compress(BOOK.encode()))
    zstandard = pytest.importorskip("zstandard")
    (made / "deep" / "c.txt.zst").write_bytes(zstandard.ZstdCompressor().compress(BOOK.encode()))
    (made / "d.txt").write_text(" \n\n")
    for name in ("README.md", "LICENSE", "LICENSE-MIT", ".gitattributes", "readme.txt", "dataset_infos.json"):
        (made / name).write_text("about the data")
    return made


def records(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def registered(workspace: Path) -> object:
    return json.loads((workspace / "storage" / "dataset_info.json").read_text())["corpus"]


def planned(workspace: Path) -> int | None:
    """Tokens that `cpt plan` counts on."""
    return amount.of(plan_run(read.read(workspace / "my.yaml", []), {})).trained


def test_a_file_is_a_document(cpt: Cpt, workspace: Path, register: Callable[..., None]) -> None:
    (workspace / "book.txt").write_text(BOOK * 10, newline="")
    register(source="../book.txt")
    said = cpt("validate", "my.yaml", "--data")
    assert "corpus: 1 document, 440 bytes of text, about 111 tokens (estimated)" in said.err
    estimated = planned(workspace)
    done = cpt("stage-data", "my.yaml")
    assert "/storage/book.jsonl (1 document, about 111 tokens)\n" in done.err, done.err
    assert records(workspace / "storage" / "book.jsonl") == [{"text": PLAIN * 10}]
    path = str(workspace / "storage" / "book.jsonl")
    assert registered(workspace) == {"file_name": path, "columns": {"prompt": "text"}}
    assert (estimated, planned(workspace)) == (111, 111)
    assert "identical" in cpt("stage-data", "my.yaml").err.splitlines()[0]


def test_a_folder_of_files_is_one_file_of_documents(
    cpt: Cpt, workspace: Path, folder: Path, register: Callable[..., None]
) -> None:
    register(source="../texts", columns={"prompt": "content"})
    said = cpt("validate", "my.yaml", "--data")
    assert (said.code, "corpus: 3 documents, 132 bytes of text, about 36 tokens" in said.err) == (0, True), said
    assert "d.txt:1:1: warning[data-record]: 1 file without text (left out when it is staged)" in said.out
    estimated = planned(workspace)
    done = cpt("stage-data", "my.yaml")
    made = workspace / "storage" / "texts" / "texts.jsonl"
    assert done.err.splitlines()[0] == f"cpt: created   {made} (3 documents, about 36 tokens); 1 without text"
    assert records(made) == [{"content": PLAIN}] * 3
    assert [path.name for path in made.parent.iterdir() if not path.name.startswith(".")] == ["texts.jsonl"]
    assert registered(workspace) == {"columns": {"prompt": "content"}, "file_name": str(made.parent)}
    assert (estimated, planned(workspace)) == (36, 36)
    assert "identical" in cpt("stage-data", "my.yaml").err.splitlines()[0]
    (folder / "a.txt").unlink()
    assert "(2 documents, about 24 tokens)" in cpt("stage-data", "my.yaml").err
    assert len(records(made)) == 2


def test_a_line_is_a_document_if_the_entry_says_so(
    cpt: Cpt, workspace: Path, folder: Path, register: Callable[..., None]
) -> None:
    register(source="../texts", per_line=True)
    assert "corpus: 9 documents" in cpt("validate", "my.yaml", "--data").err
    done = cpt("stage-data", "my.yaml")
    assert "(9 documents, about " in done.err
    lines = [line for line in PLAIN.splitlines() if line]
    made = workspace / "storage" / "texts" / "texts.jsonl"
    assert records(made) == [{"text": line} for line in lines] * 3
    assert "per_line" not in str(registered(workspace))
    register(source="../texts")  # the same files, read otherwise
    assert "replaced" in cpt("stage-data", "my.yaml").err.splitlines()[0]
    assert len(records(made)) == 3


def test_per_line_is_of_text_files(cpt: Cpt, register: Callable[..., None]) -> None:
    columns = {"prompt": "text"}
    register(file_name="corpus.jsonl", columns=columns, per_line=True)
    said = cpt("validate", "my.yaml")
    assert (said.code, "warning[registry-key]: 'per_line' is of text files (.txt)" in said.out) == (0, True), said
    register(file_name="corpus.jsonl", columns=columns, per_line="yes")
    said = cpt("validate", "my.yaml")
    assert (said.code, "error[registry-entry]: 'per_line' must be true or false" in said.out) == (2, True), said


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
@pytest.mark.parametrize("end", ["", "\n", "\r\n\r\n"])
def test_lines_over_the_edges_of_chunks(size: int, end: str) -> None:
    data = b"\xef\xbb\xbf" + f"one\r\ntwö\n \n\nthree{end}".encode()
    maker = texts.Maker(Report(Path("a.txt")), "text", "line")
    made = b"".join(maker.feed(data[at : at + size]) for at in range(0, len(data), size)) + maker.end()
    assert [json.loads(line)["text"] for line in made.splitlines()] == ["one", "twö", "three"]
    assert (maker.report.documents, maker.report.text_bytes, maker.report.empty_count) == (3, 12, 0)


@pytest.mark.parametrize(
    ("content", "said", "rule"),
    [
        (b"fine\n\xff\n", "not UTF-8 (byte 5 of the file)", "data-encoding"),
        ("fine".encode("utf-16"), "not UTF-8, but UTF-16 (iconv -f UTF-16 -t UTF-8 makes it so)", "data-encoding"),
    ],
)
def test_what_is_not_utf_8(
    cpt: Cpt, workspace: Path, folder: Path, register: Callable[..., None], content: bytes, said: str, rule: str
) -> None:
    (folder / "bad.txt").write_bytes(content)
    register(source="../texts")
    looked = cpt("validate", "my.yaml", "--data")
    assert f"{folder}/bad.txt:1:1: error[{rule}]: {said}" in looked.out
    done = cpt("stage-data", "my.yaml")
    assert (done.code, f"error: {said}\n  where: {folder}/bad.txt:1:1" in done.err) == (3, True), done.err
    skipped = cpt("stage-data", "my.yaml", "--on-bad-record", "skip")
    assert "(3 documents, about 36 tokens); 1 bad record left out, see .cpt/quarantine; 1 without" in skipped.err
    [aside] = records(next((workspace / "storage" / ".cpt" / "quarantine").rglob("*.jsonl")))
    assert aside["reason"] == f"bad.txt: {said}"


def test_a_document_that_is_too_long_is_named(
    cpt: Cpt, folder: Path, register: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(texts, "MAX_RECORD", 1 << 20)
    (folder / "dump.txt").write_text("a line\n" * (1 << 18))
    register(source="../texts")
    done = cpt("stage-data", "my.yaml")
    assert done.code == 3
    assert f"error: a document of over 1 MiB; the rest was not read\n  where: {folder}/dump.txt:1:1\n" in done.err
    assert 'set "per_line": true in the entry if each of its lines is a document' in done.err
    assert "a document of over 1 MiB" in cpt("validate", "my.yaml", "--data").out
    register(source="../texts", per_line=True)
    assert cpt("stage-data", "my.yaml").code == 0


def as_before(workspace: Path, *copies: Copy, **fields: object) -> None:
    """Stages as earlier versions did: text files as they are."""
    stage.stage(copies, {"corpus": fields}, workspace / "storage", report=lambda _: None)


def test_a_text_file_of_an_earlier_version_makes_room(cpt: Cpt, workspace: Path, register: Callable[..., None]) -> None:
    source, storage = workspace / "book.txt", workspace / "storage"
    source.write_text(BOOK)
    columns = {"prompt": "text"}
    register(source="../book.txt", columns=columns)
    as_before(workspace, Copy(str(source), storage / "book.txt"), file_name=str(storage / "book.txt"), columns=columns)
    done = cpt("stage-data", "my.yaml")
    assert (done.code, f"removed   {storage}/book.txt\n" in done.err) == (0, True), done.err
    assert not (storage / "book.txt").exists()
    assert registered(workspace) == {"file_name": str(storage / "book.jsonl"), "columns": columns}
    assert {"book.jsonl"} == {name for name in manifest.read(Layout(storage, "")) if name.startswith("book")}


def test_a_file_that_somebody_changed_stays(cpt: Cpt, workspace: Path, register: Callable[..., None]) -> None:
    source, storage = workspace / "book.txt", workspace / "storage"
    source.write_text(BOOK)
    register(source="../book.txt", columns={"prompt": "text"})
    as_before(
        workspace,
        Copy(str(source), storage / "book.txt"),
        file_name=str(storage / "book.txt"),
        columns={"prompt": "text"},
    )
    (storage / "book.txt").write_text("somebody's own")
    done = cpt("stage-data", "my.yaml")
    assert (done.code, "has another entry 'corpus': it differs in file_name" in done.err) == (2, True), done.err
    assert (storage / "book.txt").read_text() == "somebody's own"


def test_the_files_of_a_folder_of_an_earlier_version_make_room(
    cpt: Cpt, workspace: Path, folder: Path, register: Callable[..., None]
) -> None:
    register(source="../texts", columns={"prompt": "text"})
    target = workspace / "storage" / "texts"
    as_before(
        workspace,
        *(
            Copy(str(folder / name), target / name.removesuffix(".gz"), shard_of=(str(folder), target))
            for name in ("a.txt", "b.txt.gz")
        ),
        file_name=str(target),
        columns={"prompt": "text"},
    )
    done = cpt("stage-data", "my.yaml")
    assert (done.code, f"removed   {target} (2 files)\n" in done.err) == (0, True), done.err
    assert [path.name for path in target.iterdir() if not path.name.startswith(".")] == ["texts.jsonl"]


def test_text_files_that_others_put_there_are_read_by_line(cpt: Cpt, workspace: Path) -> None:
    storage = workspace / "storage"
    (storage / "theirs").mkdir()
    for name in ("a.txt", "b.txt"):
        (storage / "theirs" / name).write_text(BOOK, newline="")
    entry = {"theirs": {"file_name": "theirs", "columns": {"prompt": "text"}}}
    (storage / "dataset_info.json").write_text(json.dumps(entry, indent=1))
    what = "'theirs' is 2 text files: LLaMA-Factory makes each of their 8 LINES a document"
    said = cpt("validate", "my.yaml", "dataset=theirs", "--data")
    assert f"{storage}/dataset_info.json:3:3: warning[data-lines]: {what}" in said.out, said.out
    assert "theirs: 6 documents" in said.err
    assert "2 records without text" not in said.out  # of both files
    plain = workspace / "plain.yaml"
    plain.write_text(f"stage: pt\ndo_train: true\ndataset: theirs\ndataset_dir: {storage}\ntemplate: default\n")
    assert f"warning[data-lines]: {what}" in cpt("validate", plain).out


def tar_of(name: str, content: bytes) -> bytes:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as archive:
        info = tarfile.TarInfo(name)
        info.size = len(content)
        archive.addfile(info, io.BytesIO(content))
    return made.getvalue()


def zip_of(name: str, content: bytes) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        archive.writestr(name, content)
    return made.getvalue()


@pytest.mark.parametrize("name", ["x.txt", "x.txt.gz"])
@pytest.mark.parametrize(
    ("packed", "said"), [(tar_of, "it is a tar archive: unpack it"), (zip_of, "it is a zip archive: unpack it")]
)
def test_an_archive_is_named(
    cpt: Cpt, folder: Path, register: Callable[..., None], name: str, packed: Callable[..., bytes], said: str
) -> None:
    content = packed("a.txt", BOOK.encode())
    (folder / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    register(source="../texts")
    looked = cpt("validate", "my.yaml", "--data")
    assert (looked.code, f"{folder}/{name}:1:1: error[data-record]: {said}" in looked.out) == (3, True), looked.out
    done = cpt("stage-data", "my.yaml")
    assert (done.code, f"error: {said}" in done.err, f"where: {folder}/{name}\n" in done.err) == (3, True, True)


@pytest.mark.parametrize("kind", ["jsonl", "json", "csv", "parquet"])
@pytest.mark.parametrize("ending", [".gz", ".zst"])
def test_packed_data_is_read_as_it_is_staged(
    cpt: Cpt, workspace: Path, register: Callable[..., None], kind: str, ending: str
) -> None:
    plain = workspace / f"plain.{kind}"
    if kind == "parquet":
        pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
        pq.write_table(pa.table({"text": ["one", "two"]}), plain)
    else:
        contents = {"jsonl": '{"text": "one"}\n{"text": "two"}\n', "csv": "text\none\ntwo\n"}
        plain.write_text(contents.get(kind, '[{"text": "one"}, {"text": "two"}]'))
    zstandard = pytest.importorskip("zstandard")
    pack = gzip.compress if ending == ".gz" else zstandard.ZstdCompressor().compress
    packed = workspace / f"c.{kind}{ending}"
    packed.write_bytes(pack(plain.read_bytes()))
    register(source=f"../{packed.name}", columns={"prompt": "text"})
    looked = cpt("validate", "my.yaml", "--data")
    assert "corpus: 2 documents, 6 bytes of text, about 3 tokens" in looked.err, looked
    assert planned(workspace) == 3
    assert "(2 documents, about 3 tokens)" in cpt("stage-data", "my.yaml").err
    packed.write_bytes(packed.read_bytes()[:-9])
    looked = cpt("validate", "my.yaml", "--data")
    assert (looked.code, f"{packed}:1:1: error[data-record]: cannot read the data" in looked.out) == (3, True), looked


def test_a_bomb_is_not_unpacked_to_be_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "UNPACKED_FLOOR", 1 << 20)
    path = tmp_path / "c.jsonl.gz"
    path.write_bytes(gzip.compress(b"\n" * (20 << 20), 1))
    with pytest.raises(DataError, match="no text is packed so tightly"):
        reading.file(path, "text")


def test_a_job_takes_text_files_along_as_they_are(workspace: Path, folder: Path, register: Callable[..., None]) -> None:
    register(source="../texts", per_line=True)
    made = bundle.make(workspace / "my.yaml", [])
    taken = json.loads(made.texts["dataset-configs/dataset_info.json"])["corpus"]
    assert taken == {"source": "data/texts", "file_name": "texts", "per_line": True}
    there = {
        name.removeprefix("dataset-configs/data/texts/")
        for name in made.files
        if name.startswith("dataset-configs/data/")
    }
    assert there == {"a.txt", "b.txt.gz", "d.txt", "deep/c.txt.zst"}
    register(source="../texts/b.txt.gz")
    made = bundle.make(workspace / "my.yaml", [])
    taken = json.loads(made.texts["dataset-configs/dataset_info.json"])["corpus"]
    assert (taken["source"], taken["file_name"]) == ("data/b.txt.gz", "b.txt")


def test_what_failed_to_be_tokenised_is_named(workspace: Path) -> None:
    storage = workspace / "storage"
    (storage / "theirs.txt").write_bytes(tar_of("a.txt", b"one"))
    entry = {"theirs": {"file_name": "theirs.txt", "columns": {"prompt": "text"}}}
    (storage / "dataset_info.json").write_text(json.dumps(entry))
    plan = plan_run(read.read(workspace / "my.yaml", ["dataset=theirs"]), {})
    [problem] = tokenize._wrong_files(plan)
    assert (problem.where, "tar archive" in problem.what) == (str(storage / "theirs.txt"), True)


@pytest.mark.e2e
@pytest.mark.parametrize("per_line", [False, True])
def test_llama_factory_loads_as_many_documents_as_were_counted(
    cpt: Cpt, workspace: Path, folder: Path, register: Callable[..., None], per_line: bool
) -> None:
    """Its own loader, on what was staged; and on text files, to hold what `data-lines` says of them."""
    storage = workspace / "storage"
    register(source="../texts", per_line=per_line)
    counted = re.search(r"texts\.jsonl \((\d+) documents", cpt("stage-data", "my.yaml").err)
    assert counted is not None
    assert len(load(storage, "corpus", workspace)) == int(counted[1])
    theirs = storage / "theirs.txt"
    theirs.write_bytes(b"\xef\xbb\xbf" + BOOK.encode() + b"\r\r\nlast\r\n")
    entry = {"theirs": {"file_name": "theirs.txt", "columns": {"prompt": "text"}}}
    (storage / "dataset_info.json").write_text(json.dumps(entry))
    seen = corpus.read(theirs, "text")
    assert (seen.documents, seen.empty_count) == (4, 3)
    assert len(load(storage, "theirs", workspace)) == 7
    assert "each of their 7 LINES" in cpt("validate", "my.yaml", "dataset=theirs").out


def load(storage: Path, name: str, cache: Path) -> list[object]:
    """What LLaMA-Factory has of a dataset before it tokenises it."""
    from llamafactory.data.loader import _load_single_dataset
    from llamafactory.data.parser import get_dataset_list
    from llamafactory.hparams import DataArguments, ModelArguments
    from transformers import Seq2SeqTrainingArguments

    [attributes] = get_dataset_list([name], str(storage))
    data = DataArguments(dataset=name, dataset_dir=str(storage), template="default", overwrite_cache=True)
    model = ModelArguments(model_name_or_path="none", cache_dir=str(cache / "cache"))
    training = Seq2SeqTrainingArguments(output_dir=str(cache / "out"), use_cpu=True)
    return list(_load_single_dataset(attributes, model, data, training))
