import gzip
import hashlib
import http.server
import json
import random
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cpt_launcher.errors import ConfigError, DataError
from cpt_launcher.staging import sources as source
from cpt_launcher.staging import stage
from cpt_launcher.staging.dataset import Copy

from ..conftest import Outcome

LINE = b'{"text": "one"}\n'
Cpt = Callable[..., Outcome]


class Pages(http.server.ThreadingHTTPServer):
    """Serves `files` by path, and pages that link to what `links` says."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.links: dict[str, list[str]] = {}
        self.asked: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Pages

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        path = self.path.partition("?")[0]
        if path in self.server.links:
            page = "".join(f'<a href="{link}">x</a>\n' for link in self.server.links[path])
            self.answer(page.encode(), "text/html")
        elif path in self.server.files:
            self.answer(self.server.files[path], "application/octet-stream")
        else:
            self.send_error(404)

    def answer(self, body: bytes, kind: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("ETag", f'"{hashlib.md5(body).hexdigest()}"')
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)


@pytest.fixture
def pages() -> Iterator[Pages]:
    with Pages() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def storage(tmp_path: Path) -> Path:
    folder = tmp_path / "deep" / "storage"
    folder.mkdir(parents=True)
    return folder


def everything(folder: Path) -> dict[str, bytes]:
    """All files below a folder but the locks and the manifest of staging."""
    paths = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    return {name: path.read_bytes() for name, path in paths.items() if ".cpt/" not in name}


def staged(storage: Path, url: str, name: str, *, force: bool = False) -> list[str]:
    options = stage.Options(force=force)
    done = stage.stage([Copy(url, storage / name, "text")], {}, storage, report=lambda _: None, options=options)
    return [f"{item.outcome} {Path(item.path).relative_to(storage)}" for item in done]


@pytest.mark.parametrize(
    "text",
    [
        "reference://corpus.jsonl::http://host/refs.json",
        "simplecache::file:///etc/shadow",
        "zip::corpus.zip",
        "file:///etc/shadow",
        "local:///etc/shadow",
        "github://org:repo@/x.jsonl",
        "memory://x.jsonl",
        "ftp://host/x.jsonl",
        "HTTPS://host/x.jsonl",
        "/data/s3://b/x.jsonl",
        "https://host/x.jsonl::reference://y",
        "s3://bucket/a\nb.jsonl",
    ],
)
def test_what_is_no_source(tmp_path: Path, cpt: Cpt, workspace: Path, text: str) -> None:
    assert source.refused(text)
    if "://" in text:
        with pytest.raises(DataError, match="cannot read from there"):
            source.open_at(text, 0)
    for key in ("source", "cloud_file_name", "file_name"):
        fields = {"file_name": "c.jsonl", "columns": {"prompt": "text"}, key: text}
        entry = json.dumps({"corpus": fields}, indent=1)
        (workspace / "dataset-configs" / "dataset_info.json").write_text(entry)
        line = next(number for number, written in enumerate(entry.splitlines(), 1) if f'"{key}"' in written)
        said = cpt("validate", "my.yaml")
        assert f"dataset-configs/dataset_info.json:{line}:3: error[registry-source]" in said.out
        code = 2 if "org:repo@" in text else 3  # a password in a file is a mistake of its own
        assert said.code == code
        before = everything(tmp_path)
        assert cpt("stage-data", "my.yaml").code == code
        assert everything(tmp_path) == before


@pytest.mark.parametrize(
    "text",
    ["c.jsonl", "/data/c.jsonl", "../c", "https://h/c.jsonl?a=b", "http://h/x/", "s3://b/c", "s3a://b/c", "gs://b/c/",
     "gcs://b/c", "hf://datasets/a/b/c.parquet"],
)  # fmt: skip
def test_what_is_a_source(text: str) -> None:
    assert source.refused(text) is None


def test_a_source_runs_no_code(pages: Pages, cpt: Cpt, workspace: Path, tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    template = f"{{{{ cycler.__init__.__globals__.os.popen('touch {mark}').read() }}}}x"
    refs = {"version": 1, "templates": {}, "refs": {}}
    pages.files["/refs.json"] = json.dumps(
        {**refs, "gen": [{"key": "corpus.jsonl", "dimensions": {"i": [0]}, "url": template}]}
    ).encode()
    fields = {"source": f"reference://corpus.jsonl::{pages.url}/refs.json", "file_name": "corpus.jsonl"}
    entry = {"corpus": {**fields, "columns": {"prompt": "text"}}}
    (workspace / "dataset-configs" / "dataset_info.json").write_text(json.dumps(entry))
    assert "no source" in cpt("stage-data", "my.yaml").err
    with pytest.raises(DataError, match="no source"):
        staged(workspace / "storage", fields["source"], "corpus.jsonl")
    assert not mark.exists()
    assert pages.asked == []


def test_a_web_servers_folder(pages: Pages, storage: Path) -> None:
    pages.links = {"/data/": ["?C=N;O=D", "a.jsonl", "b.jsonl.gz?X-Amz-Signature=planted", ".hidden.jsonl", "_SUCCESS"]}
    pages.files = {"/data/a.jsonl": LINE, "/data/b.jsonl.gz": gzip.compress(LINE * 2)}
    assert staged(storage, f"{pages.url}/data/", "c4") == ["created c4/a.jsonl", "created c4/b.jsonl"]
    assert everything(storage) == {"c4/a.jsonl": LINE, "c4/b.jsonl": LINE * 2}
    assert b"planted" not in (storage / ".cpt" / "manifest.json").read_bytes()
    pages.links["/data/"].remove("a.jsonl")
    assert staged(storage, f"{pages.url}/data/", "c4") == ["identical c4/b.jsonl", "removed c4/a.jsonl"]


@pytest.mark.parametrize(
    ("link", "said"),
    [
        ("../../../home/.ssh/authorized_keys", "which is no file of it"),
        ("../up.jsonl", "which is no file of it"),
        ("x/../../../up.jsonl", "which is no file of it"),
        ("x//b.jsonl", "which is no file of it"),
        ("authorized_keys", "does not load a name without ending"),
        ("evil.sh", "does not load .sh"),
        ("b.csv", "files of one kind, not .csv, .jsonl"),
    ],
)
@pytest.mark.parametrize("force", [False, True])
def test_a_listing_cannot_choose_the_place(
    pages: Pages, storage: Path, tmp_path: Path, link: str, said: str, force: bool
) -> None:
    keys = tmp_path / "home" / ".ssh" / "authorized_keys"
    keys.parent.mkdir(parents=True)
    keys.write_text("mine")
    pages.links = {"/data/": ["a.jsonl", link]}
    pages.files = {"/data/a.jsonl": LINE, "/home/.ssh/authorized_keys": b"evil", "/up.jsonl": LINE}
    before = everything(tmp_path)
    with pytest.raises(DataError, match=said):
        staged(storage, f"{pages.url}/data/", "c4", force=force)
    assert everything(tmp_path) == before


def test_an_address_with_a_query_is_named_by_its_path(pages: Pages, cpt: Cpt, workspace: Path) -> None:
    pages.files = {"/c.jsonl": LINE * 2000, "/download": LINE * 2000}
    registry = workspace / "dataset-configs" / "dataset_info.json"
    query = "?version=planted0123"

    def entry(**fields: str) -> None:
        registry.write_text(json.dumps({"corpus": {**fields, "columns": {"prompt": "text"}}}))

    entry(source=f"{pages.url}/download{query}")
    nameless = cpt("validate", "my.yaml")
    assert nameless.code == 3
    assert "registry-file" in nameless.out
    assert '"file_name" says what it is called' in nameless.out
    entry(source=f"{pages.url}/download{query}", file_name="d.jsonl")
    named = [cpt("validate", "my.yaml"), cpt("stage-data", "my.yaml"), cpt("run", "my.yaml", "--dry-run")]
    (workspace / "storage" / "dataset_info.json").unlink()
    entry(source=f"{pages.url}/c.jsonl{query}")
    named += [cpt("validate", "my.yaml"), cpt("stage-data", "my.yaml", "--json"), cpt("run", "my.yaml", "--dry-run")]
    assert [said.code for said in named] == [0] * 6
    found = everything(workspace / "storage")
    assert found["c.jsonl"] == found["d.jsonl"] == LINE * 2000
    said = "".join(one.out + one.err for one in (nameless, *named))
    files = b"".join(path.read_bytes() for path in (workspace / "storage").rglob("*") if path.is_file())
    assert "planted" not in said
    assert b"planted" not in files


@pytest.mark.parametrize(
    "command", [("validate",), ("stage-data",), ("run",), ("run", "--dry-run"), ("plan",), ("job",)]
)
def test_a_signed_address_is_refused_and_not_shown(
    cpt: Cpt, workspace: Path, tmp_path: Path, command: tuple[str, ...]
) -> None:
    registry = workspace / "dataset-configs" / "dataset_info.json"
    source = "https://example.org/c.jsonl?X-Amz-Signature=planted0123"
    registry.write_text(json.dumps({"corpus": {"source": source, "columns": {"prompt": "text"}}}))
    before = everything(tmp_path)
    said = cpt(command[0], "my.yaml", *command[1:])
    assert said.code == 2
    assert "planted" not in said.out + said.err
    assert everything(tmp_path) == before


def test_the_hash_that_an_entry_asks_for(pages: Pages, cpt: Cpt, workspace: Path) -> None:
    pages.files = {"/c.jsonl": LINE * 2000}
    right = hashlib.sha256(LINE * 2000).hexdigest()
    registry, storage = workspace / "dataset-configs" / "dataset_info.json", workspace / "storage"

    def entry(sha256: object, **fields: str) -> None:
        fields = {"source": f"{pages.url}/c.jsonl", "file_name": "c.jsonl", **fields}
        registry.write_text(json.dumps({"corpus": {**fields, "sha256": sha256, "columns": {"prompt": "text"}}}))

    entry("0" * 64)
    assert cpt("validate", "my.yaml").code == 0
    refused = cpt("stage-data", "my.yaml")
    assert refused.code == 3
    assert f"its sha256 is {right}, not {'0' * 64}" in refused.err
    assert "nothing was staged" in refused.err
    assert not (storage / "c.jsonl").exists()
    assert not (storage / "dataset_info.json").exists()
    entry(right.upper())
    assert cpt("stage-data", "my.yaml").code == 0
    assert "sha256" not in json.loads((storage / "dataset_info.json").read_text())["corpus"]
    assert cpt("stage-data", "my.yaml").err.count("identical") >= 2
    entry("0" * 64)  # asked for later: what is there is not it
    assert cpt("stage-data", "my.yaml").code == 3
    assert (storage / "c.jsonl").read_bytes() == LINE * 2000
    entry("abc")
    assert "registry-source" in cpt("validate", "my.yaml").out
    entry(right, source=f"{pages.url}/data/", file_name="data")
    assert "'sha256' is of a single file" in cpt("validate", "my.yaml").out


def test_a_hash_is_of_all_that_came_though_bad_records_are_left_out(pages: Pages, storage: Path) -> None:
    pages.files = {"/c.jsonl": LINE + b"no record\n"}
    right = hashlib.sha256(pages.files["/c.jsonl"]).hexdigest()
    options = stage.Options(skip_bad=True)
    for wanted in (right, hashlib.sha256(LINE).hexdigest()):
        copy = Copy(f"{pages.url}/c.jsonl", storage / f"{wanted[:4]}.jsonl", "text", sha256=wanted)
        if wanted == right:
            (item,) = stage.stage([copy], {}, storage, report=lambda _: None, options=options)
            assert (item.documents, item.skipped) == (1, 1)
        else:
            with pytest.raises(DataError, match="not the file that the entry asks for"):
                stage.stage([copy], {}, storage, report=lambda _: None, options=options)
            assert not copy.target.exists()


def test_a_link_among_the_storages_folders_leads_nowhere_else(pages: Pages, storage: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (storage / "c4").symlink_to(outside)
    pages.links, pages.files = {"/data/": ["a.jsonl"]}, {"/data/a.jsonl": LINE}
    for force in (False, True):
        with pytest.raises(ConfigError, match="a link leads out of the storage"):
            staged(storage, f"{pages.url}/data/", "c4", force=force)
    assert list(outside.iterdir()) == []


def test_zstd_of_many_frames_and_cut_short(tmp_path: Path) -> None:
    zstandard = pytest.importorskip("zstandard")
    pack = zstandard.ZstdCompressor().compress
    chance, text = random.Random(1).randbytes(3 << 20), LINE * 100_000
    path = tmp_path / "c.jsonl.zst"
    path.write_bytes(pack(chance) + pack(b"") + pack(text) + pack(LINE))
    with source.open_at(str(path), 0) as file:
        assert file.read() == chance + text + LINE
    path.write_bytes(pack(text)[:-1])
    with pytest.raises(EOFError, match="ends within a frame"), source.open_at(str(path), 0) as file:
        file.read()
    with pytest.raises(DataError, match="ends within a frame"):
        stage_one(tmp_path, path)
    assert not (tmp_path / "storage" / "c.jsonl").exists()


def stage_one(tmp_path: Path, path: Path) -> None:
    storage = tmp_path / "storage"
    storage.mkdir()
    stage.stage([Copy(str(path), storage / "c.jsonl", "text")], {}, storage, report=lambda _: None)


def test_a_remote_folder_of_text_files_and_what_tells_of_them(pages: Pages, cpt: Cpt, workspace: Path) -> None:
    pages.links = {"/texts/": ["README.md", "LICENSE", "a.txt", "b.txt.gz"]}
    pages.files = {
        "/texts/README.md": b"# About",
        "/texts/LICENSE": b"free",
        "/texts/a.txt": b"one\n\nstill one\n",
        "/texts/b.txt.gz": gzip.compress(b"two\n"),
    }
    entry = {"corpus": {"source": f"{pages.url}/texts/", "columns": {"prompt": "text"}}}
    (workspace / "dataset-configs" / "dataset_info.json").write_text(json.dumps(entry))
    done = cpt("stage-data", "my.yaml")
    made = workspace / "storage" / "texts" / "texts.jsonl"
    assert done.err.splitlines()[0].startswith(f"cpt: created   {made} (2 documents"), done.err
    assert [json.loads(line)["text"] for line in made.read_text().splitlines()] == ["one\n\nstill one\n", "two\n"]
    pages.asked = []
    assert "identical" in cpt("stage-data", "my.yaml").err.splitlines()[0]
    pages.files["/texts/a.txt"] = b"\xff"
    done = cpt("stage-data", "my.yaml")
    assert f"where: {pages.url}/texts/a.txt:1:1\n" in done.err, done.err
    pages.links["/texts/"].append("c.jsonl")
    pages.files["/texts/c.jsonl"] = LINE
    assert "a folder must hold files of one kind, not .jsonl, .txt" in cpt("stage-data", "my.yaml").err
