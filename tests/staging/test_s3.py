"""Staging from an S3 server on this machine."""

import gzip
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cpt_launcher.errors import ConfigError, DataError
from cpt_launcher.staging import dataset, stage
from cpt_launcher.staging.dataset import Copy

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")  # of aiobotocore


@pytest.fixture(scope="module")
def s3() -> Iterator[None]:
    """A server with a bucket of two shards; the environment points to it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    before = dict(os.environ)
    os.environ |= {"AWS_ENDPOINT_URL": url, "AWS_ACCESS_KEY_ID": "k", "AWS_SECRET_ACCESS_KEY": "s"}
    os.environ |= {"AWS_DEFAULT_REGION": "us-east-1"}
    try:
        deadline = time.monotonic() + 60
        while socket.socket().connect_ex(("127.0.0.1", port)) and time.monotonic() < deadline:
            time.sleep(0.2)
        import s3fs

        system = s3fs.S3FileSystem()
        system.mkdir("corpora")
        for number in (1, 2):
            system.pipe(f"corpora/shards/{number}.jsonl", b'{"text": "one"}\n' * number)
        system.pipe("corpora/shards/_SUCCESS", b"")
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
        server.terminate()
        server.wait()


def outcomes(storage: Path, source: str, target: str) -> list[tuple[str, str, int | None]]:
    done = stage.stage([Copy(source, storage / target, "text")], {}, storage, report=lambda _: None)
    return [(Path(item.path).relative_to(storage).as_posix(), item.outcome, item.documents) for item in done]


def test_a_file_and_a_folder(s3: None, tmp_path: Path) -> None:
    assert outcomes(tmp_path, "s3://corpora/shards/2.jsonl", "c.jsonl") == [("c.jsonl", "created", 2)]
    assert outcomes(tmp_path, "s3://corpora/shards/2.jsonl", "c.jsonl") == [("c.jsonl", "identical", 2)]
    assert (tmp_path / "c.jsonl").read_bytes() == b'{"text": "one"}\n' * 2
    assert outcomes(tmp_path, "s3://corpora/shards/", "shards") == [
        ("shards/1.jsonl", "created", 1),
        ("shards/2.jsonl", "created", 2),
    ]


def test_to_a_bucket_from_where_llamafactory_reads(s3: None, tmp_path: Path) -> None:
    import s3fs

    cloud = "s3://corpora/trained/c.jsonl"
    fields = {"source": "c.jsonl.gz", "cloud_file_name": cloud, "columns": {"prompt": "text"}}
    (tmp_path / "dataset_info.json").write_text(json.dumps({"mine": fields}))
    (tmp_path / "c.jsonl.gz").write_bytes(gzip.compress(b'{"text": "one"}\n' * 3))
    storage = tmp_path / "storage"
    storage.mkdir()

    def staged(*, force: bool = False) -> list[tuple[str, str, int | None]]:
        entry = dataset.read_registry(tmp_path / "dataset_info.json")["mine"]
        assert entry.staged(storage) == {"cloud_file_name": cloud, "columns": {"prompt": "text"}}
        copies, options = dataset.copies(entry, storage), stage.Options(force=force)
        done = stage.stage(copies, {}, storage, report=lambda _: None, options=options)
        return [(item.path, item.outcome, item.documents) for item in done]

    system = s3fs.S3FileSystem()
    assert staged() == [(cloud, "created", 3)]
    assert staged() == [(cloud, "identical", 3)]
    assert system.cat(cloud) == b'{"text": "one"}\n' * 3
    (tmp_path / "c.jsonl.gz").write_bytes(gzip.compress(b'{"text": "two"}\n'))
    assert staged() == [(cloud, "replaced", 1)]
    system.pipe(cloud, b"of somebody else")
    with pytest.raises(ConfigError, match="has other content"):
        staged()
    (tmp_path / "c.jsonl.gz").write_bytes(gzip.compress(b"no record\n"))
    with pytest.raises(DataError):
        staged(force=True)
    assert system.cat(cloud) == b"of somebody else"
    assert [path.name for path in storage.rglob("*") if path.is_file()] == ["lock", "manifest.json"]


def test_what_is_not_there(s3: None, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot read the data"):
        outcomes(tmp_path, "s3://corpora/absent.jsonl", "c.jsonl")


def test_a_key_cannot_choose_the_place(s3: None, tmp_path: Path) -> None:
    """Keys with `..` in them, as boto3 writes them: s3fs itself would take them for paths."""
    import s3fs

    storage = tmp_path / "a" / "storage"
    storage.mkdir(parents=True)
    system = s3fs.S3FileSystem()
    for bucket, key in (
        ("climbing", "data/../../../home/.ssh/authorized_keys"),
        ("foreign", "data/evil.sh"),
        ("mixed", "data/2.csv"),
    ):
        system.mkdir(bucket)
        for name in ("data/1.jsonl", key):
            system.call_s3("put_object", Bucket=bucket, Key=name, Body=b'{"text": "one"}\n')
        with pytest.raises(DataError, match=r"which is no file of it|does not load \.sh|files of one kind"):
            outcomes(storage, f"s3://{bucket}/data/", "c4")
    assert [path for path in tmp_path.rglob("*") if path.is_file() and ".cpt" not in path.parts] == []


def test_the_mark_of_a_folder_is_no_file(s3: None, tmp_path: Path) -> None:
    import s3fs

    system = s3fs.S3FileSystem()
    system.mkdir("marked")
    for key, body in (("data/", b""), ("data/deep/", b""), ("data/1.jsonl", b'{"text": "one"}\n')):
        system.call_s3("put_object", Bucket="marked", Key=key, Body=body)
    assert outcomes(tmp_path, "s3://marked/data/", "c4") == [("c4/1.jsonl", "created", 1)]
    assert outcomes(tmp_path, "s3a://marked/data/", "c5") == [("c5/1.jsonl", "created", 1)]
    system.call_s3("put_object", Bucket="marked", Key="data/2.jsonl", Body=b'{"text": "two"}\n')
    system.invalidate_cache()
    assert outcomes(tmp_path, "s3a://marked/data/", "c5")[1] == ("c5/2.jsonl", "created", 1)
    system.rm("marked/data/2.jsonl")
    system.invalidate_cache()
    assert outcomes(tmp_path, "s3a://marked/data/", "c5")[1] == ("c5/2.jsonl", "removed", None)
