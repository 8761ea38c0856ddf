"""Staging from an S3 server on this machine."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cpt_launcher import stage
from cpt_launcher.dataset import Copy
from cpt_launcher.errors import DataError

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


def test_what_is_not_there(s3: None, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot read the data"):
        outcomes(tmp_path, "s3://corpora/absent.jsonl", "c.jsonl")
