import gzip
import http.server
import json
import os
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cpt_launcher import disk, urls
from cpt_launcher.errors import ConfigError, DataError, StorageError
from cpt_launcher.staging import dataset, sources, stage
from cpt_launcher.staging.dataset import Copy
from cpt_launcher.staging.stage import Options

ENTRY = {"mine": {"file_name": "/storage/mine.jsonl"}}


@pytest.fixture
def storage(tmp_path: Path) -> Path:
    folder = tmp_path / "storage"
    folder.mkdir()
    return folder


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "corpus.jsonl"
    path.write_text('{"text": "a"}\n')
    return path


class Web(http.server.ThreadingHTTPServer):
    """Serves one file with ETag and ranges, as object stores do; `limit` ends each answer after so many bytes."""

    daemon_threads = True

    def __init__(self, path: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.path = path
        self.limit: int | None = None
        self.asked: list[str | None] = []
        self.on_get: Callable[[], object] = lambda: None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/{self.path.name}"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Web

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.answer(with_body=False)

    def do_GET(self) -> None:
        self.server.asked.append(self.headers["Range"])
        self.answer(with_body=True)
        self.server.on_get()

    def answer(self, *, with_body: bool) -> None:
        whole = self.server.path.read_bytes()
        start, end, size = 0, len(whole) - 1, len(whole)
        asked = self.headers["Range"]
        if asked:
            first, _, last = asked.removeprefix("bytes=").partition("-")
            start, end = int(first), min(int(last or end), end)
        self.send_response(206 if asked else 200)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("ETag", f'"{self.server.path.stat().st_mtime_ns}"')
        self.send_header("Content-Length", str(end + 1 - start))
        if asked:
            self.send_header("Content-Range", f"bytes {start}-{end}/{size}")
        self.end_headers()
        if with_body:
            body = whole[start : end + 1]
            if self.server.limit is not None and start + len(body) > self.server.limit:
                self.wfile.write(body[: max(0, self.server.limit - start)])
                self.close_connection = True
                return
            self.wfile.write(body)


@pytest.fixture
def web(source: Path) -> Iterator[Web]:
    with Web(source) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def staged(storage: Path, *copies: Copy, entries: object = None, **options: bool) -> list[stage.Staged]:
    seen: list[stage.Staged | stage.StagedFolder] = []
    done = stage.stage(copies, entries or {}, storage, report=seen.append, options=Options(**options))  # type: ignore[arg-type]
    folders = [item for item in seen if isinstance(item, stage.StagedFolder)]
    assert len(done) == len(seen) + sum(sum(item.outcomes.values()) - 1 for item in folders)
    assert folders or tuple(seen) == done
    return list(done)


def outcomes(storage: Path, *copies: Copy, **options: bool) -> list[str]:
    return [item.outcome for item in staged(storage, *copies, **options)]


def names(folder: Path) -> list[str]:
    """All files below a folder but the bookkeeping."""
    paths = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    return sorted(path for path in paths if not path.startswith(".cpt/"))


def test_created_identical_replaced(storage: Path, source: Path) -> None:
    copy = Copy(str(source), storage / "deep" / "c.jsonl", "text")
    assert outcomes(storage, copy) == ["created"]
    before = copy.target.stat()
    assert outcomes(storage, copy) == ["identical"]
    os.utime(source)  # touched, not changed
    assert outcomes(storage, copy) == ["identical"]
    assert copy.target.stat().st_mtime_ns == before.st_mtime_ns
    source.write_text('{"text": "b"}\n')
    assert outcomes(storage, copy) == ["replaced"]
    assert copy.target.read_text() == '{"text": "b"}\n'
    assert names(storage) == ["deep/c.jsonl"]


def test_the_manifest_says_what_where_from_and_how_much(storage: Path, source: Path) -> None:
    staged(storage, Copy(str(source), storage / "c.jsonl", "text"))
    record = json.loads((storage / ".cpt" / "manifest.json").read_text())["files"]["c.jsonl"]
    assert record["source"] == str(source)
    assert (record["bytes"], record["documents"], record["text_bytes"], record["skipped"]) == (14, 1, 1, 0)
    assert record["sha256"] == subprocess.check_output(["sha256sum", source], text=True).split()[0]


def test_an_unchanged_second_run_reads_nothing(storage: Path, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = Copy(str(source), storage / "c.jsonl", "text")
    staged(storage, copy)
    monkeypatch.setattr("cpt_launcher.staging.transfer.transferred", None)
    assert outcomes(storage, copy) == ["identical"]
    [item] = staged(storage, copy)
    assert (item.documents, item.text_bytes, item.tokens) == (1, 1, None)


def test_verify_finds_what_size_and_time_do_not_show(storage: Path, source: Path) -> None:
    copy = Copy(str(source), storage / "c.jsonl", "text")
    staged(storage, copy)
    times = copy.target.stat()
    copy.target.write_text('{"text": "X"}\n')
    os.utime(copy.target, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert outcomes(storage, copy) == ["identical"]
    assert outcomes(storage, copy, verify=True) == ["replaced"]
    assert copy.target.read_bytes() == source.read_bytes()


def test_others_can_read_what_was_staged(storage: Path, source: Path) -> None:
    before = os.umask(0o022)
    try:
        staged(storage, Copy(str(source), storage / "c.jsonl"))
    finally:
        os.umask(before)
    assert stat.S_IMODE((storage / "c.jsonl").stat().st_mode) == 0o644


def test_from_a_web_server(storage: Path, web: Web, source: Path) -> None:
    copy = Copy(web.url, storage / "c.jsonl", "text")
    assert outcomes(storage, copy) == ["created"]
    assert copy.target.read_bytes() == source.read_bytes()
    web.asked.clear()
    assert outcomes(storage, copy) == ["identical"]
    assert web.asked == []
    source.write_text('{"text": "new"}\n')
    assert outcomes(storage, copy, refetch=False) == ["identical"]
    assert outcomes(storage, copy) == ["replaced"]


def test_an_interrupted_download_goes_on_where_it_was(storage: Path, web: Web, source: Path) -> None:
    lines = [json.dumps({"text": f"{number} " + "x" * 1000}) + "\n" for number in range(30_000)]
    source.write_text("".join(lines))
    copy = Copy(web.url, storage / "c.jsonl", "text")
    web.limit = 15_000_000
    with pytest.raises(DataError, match="cannot read"):
        staged(storage, copy)
    assert not copy.target.exists()
    came = (storage / ".c.jsonl.cpt-part").stat().st_size
    assert came > 4_000_000
    web.limit = None
    web.asked.clear()
    [item] = staged(storage, copy)
    assert (item.outcome, item.documents) == ("created", 30_000)
    assert web.asked[0] is not None
    assert web.asked[0].startswith(f"bytes={came}-")
    assert copy.target.read_bytes() == source.read_bytes()
    assert names(storage) == ["c.jsonl"]


def test_a_changed_source_is_never_spliced(storage: Path, web: Web, source: Path) -> None:
    source.write_text("".join(json.dumps({"text": "a" * 1000}) + "\n" for _ in range(20_000)))
    copy = Copy(web.url, storage / "c.jsonl", "text")
    web.limit = 12_000_000
    with pytest.raises(DataError):
        staged(storage, copy)
    web.limit = None
    source.write_text(source.read_text().replace("a", "b").replace("text", "text"))
    source.write_text("".join(json.dumps({"text": "b" * 1000}) + "\n" for _ in range(20_000)))
    assert outcomes(storage, copy) == ["created"]
    assert copy.target.read_bytes() == source.read_bytes()


def test_a_source_that_changes_while_it_is_read(storage: Path, web: Web, source: Path) -> None:
    web.on_get = lambda: source.write_text('{"text": "z"}\n')
    with pytest.raises(DataError, match="changed while it was read"):
        staged(storage, Copy(web.url, storage / "c.jsonl", "text"))
    assert names(storage) == []


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_compressed_data_is_decompressed_on_the_way(storage: Path, tmp_path: Path, suffix: str) -> None:
    text = b'{"text": "one"}\n{"text": "two"}\n'
    path = tmp_path / f"c.jsonl{suffix}"
    if suffix == ".zst":
        zstandard = pytest.importorskip("zstandard")
        path.write_bytes(zstandard.compress(text))
    else:
        path.write_bytes(gzip.compress(text))
    [item] = staged(storage, Copy(str(path), storage / "c.jsonl", "text"))
    assert (item.outcome, item.documents, item.size) == ("created", 2, len(text))
    assert (storage / "c.jsonl").read_bytes() == text


def test_a_truncated_gzip_leaves_nothing(storage: Path, tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"text": "one"}\n' * 1000)[:-20])
    with pytest.raises(DataError):
        staged(storage, Copy(str(path), storage / "c.jsonl", "text"))
    assert names(storage) == []


@pytest.mark.parametrize("missing", ["{folder}/absent", "http://127.0.0.1:9/absent", "nosuch://x/y"])
def test_an_unreadable_source_leaves_the_old_file(storage: Path, tmp_path: Path, missing: str) -> None:
    target = storage / "c.jsonl"
    target.write_text("old")
    with pytest.raises(DataError, match="cannot read"):
        staged(storage, Copy(missing.format(folder=tmp_path), target))
    assert target.read_text() == "old"
    assert names(storage) == ["c.jsonl"]


def test_a_file_system_that_is_not_installed_names_its_extra(storage: Path) -> None:
    pytest.importorskip("fsspec")
    try:
        import gcsfs  # noqa: F401
    except ImportError:
        with pytest.raises(DataError) as caught:
            staged(storage, Copy("gs://bucket/c.jsonl", storage / "c.jsonl"))
        assert caught.value.problems[0].hint == "pip install 'cpt-launcher[gs]'"


BAD = '{"text": "a"}\n{"txt": "b"}\n\n{"text": "c"}\nnot json\n'


def test_bad_records_fail_the_copy_by_line(storage: Path, source: Path) -> None:
    source.write_text(BAD)
    with pytest.raises(DataError) as caught:
        staged(storage, Copy(str(source), storage / "c.jsonl", "text"))
    assert [problem.where for problem in caught.value.problems] == [f"{source}:2:1", f"{source}:5:1"]
    assert names(storage) == []


def test_bad_records_can_be_left_out_and_are_kept_aside(storage: Path, source: Path) -> None:
    source.write_text(BAD)
    copy = Copy(str(source), storage / "c.jsonl", "text")
    [item] = staged(storage, copy, skip_bad=True)
    assert (item.outcome, item.documents, item.skipped) == ("created", 2, 2)
    assert (storage / "c.jsonl").read_text() == '{"text": "a"}\n\n{"text": "c"}\n'
    aside = [json.loads(line) for line in (storage / ".cpt/quarantine/c.jsonl.jsonl").read_text().splitlines()]
    assert [(record["line"], record["raw"]) for record in aside] == [(2, '{"txt": "b"}'), (5, "not json")]


def test_arrays_and_tables_are_checked_too(storage: Path, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('[{"text": "a"}, {"text": 3}]')
    with pytest.raises(DataError, match="not text"):
        staged(storage, Copy(str(tmp_path / "a.json"), storage / "a.json", "text"))
    (tmp_path / "b.csv").write_text("id,text\n1,a\n2,b\n")
    [item] = staged(storage, Copy(str(tmp_path / "b.csv"), storage / "b.csv", "text"))
    assert item.documents == 2
    assert names(storage) == ["b.csv"]


def test_tokens_are_counted_with_a_tokenizer(storage: Path, source: Path, tmp_path: Path) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"<unk>": 0, "a": 1}, unk_token="<unk>"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    words.save(str(tmp_path / "tokenizer.json"))
    source.write_text('{"text": "a b c"}\n{"text": "d"}\n')
    copy = Copy(str(source), storage / "c.jsonl", "text")

    def count(tokenizer: Path | None) -> list[stage.Staged]:
        return list(stage.stage([copy], {}, storage, report=lambda _: None, options=Options(tokenizer=tokenizer)))

    assert count(None)[0].tokens is None
    assert [(item.outcome, item.tokens) for item in count(tmp_path)] == [("identical", 3 + 1 + 1 + 1)]
    assert count(None)[0].tokens == 6  # the manifest knows
    with pytest.raises(ConfigError, match=r"there is no tokenizer.json"):
        count(tmp_path / "absent")


def test_other_peoples_entries_survive(storage: Path) -> None:
    theirs = {"theirs": {"file_name": "/t.jsonl", "columns": {"prompt": "body"}}}
    (storage / "dataset_info.json").write_text(json.dumps(theirs))
    assert [item.outcome for item in staged(storage, entries=ENTRY)] == ["replaced"]
    assert json.loads((storage / "dataset_info.json").read_text()) == {**theirs, **ENTRY}


def test_another_entry_of_the_same_name_is_kept(storage: Path) -> None:
    staged(storage, entries=ENTRY)
    changed = {"mine": {"file_name": "/storage/mine.jsonl", "columns": {"prompt": "text"}}}
    with pytest.raises(ConfigError, match="another entry 'mine': it differs in columns"):
        staged(storage, entries=changed)
    assert [item.outcome for item in staged(storage, entries=changed, force=True)] == ["replaced"]


def test_a_file_from_elsewhere_is_not_overwritten(storage: Path, source: Path, tmp_path: Path) -> None:
    copy = Copy(str(source), storage / "ds_z3_config.json")
    copy.target.write_text('{"other": 1}')
    with pytest.raises(ConfigError, match="that cpt did not put there"):
        staged(storage, copy)
    copy.target.write_bytes(source.read_bytes())  # the same content is nobody's loss
    assert outcomes(storage, copy) == ["identical"]
    other = tmp_path / "other.json"
    other.write_text('{"text": "b"}\n')  # of the same size
    with pytest.raises(ConfigError, match=f"from {source} has other content"):
        staged(storage, Copy(str(other), copy.target))
    assert copy.target.read_bytes() == source.read_bytes()
    assert outcomes(storage, Copy(str(other), copy.target), force=True) == ["replaced"]


def test_an_absent_storage_is_not_made(tmp_path: Path, source: Path) -> None:
    with pytest.raises(StorageError, match="the storage is not there"):
        staged(tmp_path / "absent", Copy(str(source), tmp_path / "absent" / "c.jsonl"))
    assert not (tmp_path / "absent").exists()


def test_space_is_looked_at_first(storage: Path, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: os.statvfs_result([0] * 10) and type("U", (), {"free": 3}))
    with pytest.raises(StorageError, match="14 bytes are to be written, and 3 are free"):
        staged(storage, Copy(str(source), storage / "c.jsonl"))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount a small disk")
def test_a_disk_that_fills_keeps_the_old_file(storage: Path, tmp_path: Path) -> None:
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", storage], check=False)
    if mounted.returncode:
        pytest.skip("mounting is not allowed here")
    try:
        target = storage / "c.jsonl"
        small, large = tmp_path / "small.jsonl.gz", tmp_path / "large.jsonl.gz"
        small.write_bytes(gzip.compress(b'{"text": "old"}\n'))
        large.write_bytes(gzip.compress(b'{"text": "new"}\n' * 500_000))  # its size is seen when it is unpacked
        staged(storage, Copy(str(small), target, "text"))
        with pytest.raises(StorageError, match="No space left"):
            staged(storage, Copy(str(large), target, "text"), force=True)
        assert target.read_bytes() == b'{"text": "old"}\n'
        assert names(storage) == ["c.jsonl"]
    finally:
        subprocess.run(["umount", storage], check=True)


def test_a_storage_that_cannot_be_written(storage: Path, source: Path) -> None:
    (storage / "c.jsonl").mkdir()  # a folder where the file is to go: in the way for root too
    with pytest.raises(StorageError, match="a folder of this name is in the way"):
        staged(storage, Copy(str(source), storage / "c.jsonl"))
    assert names(storage) == []


def test_leftovers_of_the_killed_are_swept(storage: Path, source: Path) -> None:
    (storage / ".old.jsonl.cpt-part").write_text("half")
    (storage / ".old.jsonl.cpt-part.note").touch()
    (storage / ".gone.cpt-part.note").write_text("of nothing")
    (storage / ".mine").write_text("not ours")
    for name, age in ((".fresh.cpt-temp", 0), (".stale.cpt-temp", 7200)):
        (storage / name).touch()
        os.utime(storage / name, (time.time() - age, time.time() - age))
    staged(storage, Copy(str(source), storage / "c.jsonl"))
    assert names(storage) == [".fresh.cpt-temp", ".mine", "c.jsonl"]


STAGE = """
import sys, json
from pathlib import Path
from cpt_launcher.staging import stage
from cpt_launcher.staging.dataset import Copy
source, target, entry = sys.argv[1:]
stage.stage([Copy(source, Path(target), "text")] if source else [], {entry: {"file_name": entry}} if entry else {},
            Path(target).parent, report=lambda _: None, options=stage.Options(force=True))
"""


def test_stagings_at_once_lose_nothing_of_each_other(storage: Path, tmp_path: Path) -> None:
    for number in range(6):
        (tmp_path / f"{number}.jsonl").write_text('{"text": "a"}\n')
    running = [
        subprocess.Popen([sys.executable, "-c", STAGE, tmp_path / f"{n}.jsonl", storage / f"{n}.jsonl", f"entry{n}"])
        for n in range(6)
    ]
    assert [process.wait(60) for process in running] == [0] * 6
    assert set(json.loads((storage / "dataset_info.json").read_text())) == {f"entry{n}" for n in range(6)}
    assert set(json.loads((storage / ".cpt/manifest.json").read_text())["files"]) == {f"{n}.jsonl" for n in range(6)}


def test_two_copies_of_the_same_file_wait_for_each_other(storage: Path, source: Path) -> None:
    source.write_text('{"text": "a"}\n' * 200_000)
    running = [subprocess.Popen([sys.executable, "-c", STAGE, source, storage / "c.jsonl", ""]) for _ in range(3)]
    assert [process.wait(60) for process in running] == [0] * 3
    assert (storage / "c.jsonl").read_bytes() == source.read_bytes()
    assert names(storage) == ["c.jsonl"]


def kill_some(storage: Path, address: str, versions: dict[bytes, str], change: Callable[[], None], count: int) -> int:
    """Start stagings and kill each a little later; returns how many were killed at work."""
    target, killed = storage / "c.jsonl", 0
    for number in range(count):
        change()
        process = subprocess.Popen([sys.executable, "-c", STAGE, address, target, "entry"])
        time.sleep(0.08 + 0.4 * (number * 0.618 % 1))
        killed += process.poll() is None
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert not target.exists() or target.read_bytes() in versions
        for path in (storage / "dataset_info.json", storage / ".cpt" / "manifest.json"):
            assert not path.exists() or json.loads(path.read_text())
    return killed


def test_killed_at_any_moment_the_target_is_the_old_file_or_the_new(storage: Path, source: Path, web: Web) -> None:
    versions = {(json.dumps({"text": name * 999}) + "\n").encode() * 30_000: name for name in "ab"}
    turn = iter(range(10_000))

    def change() -> None:
        source.write_bytes(list(versions)[next(turn) % 2])

    count = int(os.environ.get("CPT_KILLS", "6"))
    killed = [kill_some(storage, address, versions, change, count) for address in (str(source), web.url)]
    print(f"killed at work: {killed[0]} of {count} from a file, {killed[1]} of {count} from a server")
    assert min(killed) > 0
    [item] = staged(storage, Copy(str(source), storage / "c.jsonl", "text"), force=True)
    assert item.documents == 30_000
    assert (storage / "c.jsonl").read_bytes() == source.read_bytes()
    left = [name for name in names(storage) if not name.endswith(".cpt-temp")]  # those go when they are stale
    assert set(left) <= {"c.jsonl", "dataset_info.json"}


def test_set_aside_keeps_the_content(storage: Path) -> None:
    (storage / "output").mkdir()
    (storage / "output" / "x").write_text("kept")
    aside = disk.set_aside(storage / "output")
    assert (aside / "x").read_text() == "kept"
    assert not (storage / "output").exists()


def test_two_datasets_of_one_name_are_refused_before_anything_is_staged(storage: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "c.jsonl").write_text(f'{{"text": "{name}"}}\n')
    copies = [Copy(str(tmp_path / name / "c.jsonl"), storage / "c.jsonl", "text") for name in ("a", "b")]
    with pytest.raises(ConfigError, match="would both be staged as"):
        staged(storage, *copies)
    with pytest.raises(ConfigError, match="over the registry"):
        staged(storage, Copy(str(tmp_path / "a" / "c.jsonl"), storage / "dataset_info.json"))
    assert names(storage) == []


def test_two_stagings_at_once_from_different_sources_do_not_overwrite_each_other(
    storage: Path, source: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other.jsonl"
    for path, text in ((source, "a"), (other, "b")):
        path.write_text(f'{{"text": "{text}"}}\n' * 200_000)
    target = storage / "c.jsonl"
    running = [
        subprocess.Popen(
            [sys.executable, "-c", STAGE.replace("force=True", ""), path, target, ""], stderr=subprocess.PIPE, text=True
        )
        for path in (source, other)
    ]
    said = [process.communicate(timeout=60)[1] for process in running]
    assert sorted(process.returncode for process in running) == [0, 1]
    winner = source if running[0].returncode == 0 else other
    assert target.read_bytes() == winner.read_bytes()
    assert "has other content" in "".join(said)


def test_another_column_is_checked_even_if_the_bytes_are_the_same(storage: Path, source: Path) -> None:
    copy = Copy(str(source), storage / "c.jsonl", "text")
    assert outcomes(storage, copy) == ["created"]
    with pytest.raises(DataError, match="no column 'body'") as caught:
        staged(storage, Copy(str(source), copy.target, "body"))
    assert "columns" in caught.value.problems[0].hint
    assert outcomes(storage, copy) == ["identical"]


def test_a_conflict_in_the_registry_comes_before_the_copying(storage: Path, source: Path) -> None:
    (storage / "dataset_info.json").write_text('{"mine": {"file_name": "/other.jsonl"}}')
    with pytest.raises(ConfigError, match="differs in file_name"):
        staged(storage, Copy(str(source), storage / "c.jsonl", "text"), entries=ENTRY)
    assert names(storage) == ["dataset_info.json"]


def test_a_shard_that_left_the_source_leaves_the_storage(storage: Path, tmp_path: Path) -> None:
    folder = tmp_path / "shards"
    folder.mkdir()
    for name in ("1.jsonl", "2.jsonl"):
        (folder / name).write_text('{"text": "a"}\n')
    entry = dataset.Entry("a", {"columns": {"prompt": "text"}}, tmp_path / "dataset_info.json", str(folder))
    assert outcomes(storage, *dataset.copies(entry, storage)) == ["created", "created"]
    (folder / "2.jsonl").unlink()
    assert outcomes(storage, *dataset.copies(entry, storage)) == ["identical", "removed"]
    assert names(storage) == ["shards/1.jsonl"]
    assert set(json.loads((storage / ".cpt/manifest.json").read_text())["files"]) == {"shards/1.jsonl"}
    (storage / "shards" / "theirs.jsonl").write_text('{"text": "a"}\n')
    with pytest.raises(ConfigError, match="is not of its source, and would be trained on"):
        staged(storage, *dataset.copies(entry, storage))
    with pytest.raises(ConfigError, match="is not of its source") as caught:
        staged(storage, *dataset.copies(entry, storage), force=True)
    assert caught.value.problems[0].hint == "move it away"
    assert names(storage) == ["shards/1.jsonl", "shards/theirs.jsonl"]


@pytest.mark.parametrize(
    ("name", "start", "said"),
    [
        ("c.parquet", b"not a table", "does not begin like parquet"),
        ("c.arrow", b"not a table", "does not begin like arrow"),
        ("c.jsonl", gzip.compress(b'{"text": "a"}'), "does not end in .gz"),
        ("c.txt", b"\x28\xb5\x2f\xfd....", "does not end in .zst"),
    ],
)
def test_a_file_that_is_not_what_its_name_says(
    storage: Path, tmp_path: Path, name: str, start: bytes, said: str
) -> None:
    (tmp_path / name).write_bytes(start)
    with pytest.raises(DataError, match=said):
        staged(storage, Copy(str(tmp_path / name), storage / name))
    assert names(storage) == []


def test_credentials_in_an_address_stand_nowhere(storage: Path, web: Web, source: Path) -> None:
    url = web.url.replace("http://", "http://me:planted-pw@") + "?sig=planted-sig"
    (item,) = staged(storage, Copy(url, storage / "c.jsonl", "text"))
    assert item.source == web.url
    source.write_text('{"wrong": 1}\n')
    with pytest.raises(DataError) as bad:
        staged(storage, Copy(url, storage / "c.jsonl", "text"))
    with pytest.raises(DataError) as absent:
        staged(storage, Copy("http://me:planted-pw@127.0.0.1:9/d.jsonl?sig=planted-sig", storage / "d.jsonl", "text"))
    web.limit = 3
    with pytest.raises(DataError) as cut:
        staged(storage, Copy(url, storage / "e.jsonl", "text"))
    said = " ".join(str(problem) for caught in (bad, absent, cut) for problem in caught.value.problems)
    files = "".join(path.read_text() for path in storage.rglob("*") if path.is_file())
    assert "planted" not in said + files
    assert urls.shown("https://u:p@h/x.gz?a=b and s3://b/k") == "https://h/x.gz and s3://b/k"


def test_what_is_empty_is_said_and_no_empty_quarantine_stays(storage: Path, source: Path) -> None:
    source.write_text('{"text": "a"}\n{"text": " "}\n{"text": ""}\n')
    (item,) = staged(storage, Copy(str(source), storage / "c.jsonl", "text"), skip_bad=True)
    assert (item.documents, item.empty) == (1, 2)
    assert list((storage / ".cpt").rglob("*quarantine/*")) == []


def test_a_slow_server_has_more_than_five_minutes() -> None:
    system, _ = sources._system("http://127.0.0.1:1/x")
    timeout = system.client_kwargs["timeout"]
    assert (timeout.total, timeout.sock_read) == (None, 60)


def test_a_manifest_that_nobody_can_read_is_said(storage: Path, source: Path) -> None:
    (storage / ".cpt").mkdir()
    (storage / ".cpt" / "manifest.json").write_text("[" * 100_000)
    with pytest.raises(StorageError, match="cannot read the manifest"):
        staged(storage, Copy(str(source), storage / "c.jsonl", "text"))
