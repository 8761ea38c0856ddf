"""What a packed source may unpack to."""

from __future__ import annotations

import gzip
import json
import random
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from cpt_launcher import disk
from cpt_launcher.errors import DataError, StorageError
from cpt_launcher.staging import reading, sources, transfer
from cpt_launcher.staging.dataset import Copy

MIB = 1 << 20


def staged(copy: Copy) -> int:
    """The copy published, and its size in bytes."""
    version = sources.version(copy.source)
    with transfer.transferred(copy, version, transfer.How(), lambda _: None) as (part, done):
        part.publish()
    return done.size


@pytest.fixture
def storage(tmp_path: Path) -> Path:
    path = tmp_path / "storage"
    path.mkdir()
    return path


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    return tmp_path / "c.jsonl.gz"


def test_a_bomb_is_refused_and_leaves_nothing(storage: Path, packed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "UNPACKED_FLOOR", 4 * MIB)
    packed.write_bytes(gzip.compress(b"\n" * (20 * MIB), 1))
    copy = Copy(str(packed), storage / "c.jsonl", "text")
    with pytest.raises(DataError, match="no text is packed so tightly") as caught:
        staged(copy)
    assert caught.value.problems[0].where == str(packed)
    assert list(storage.iterdir()) == []


def test_text_that_packs_well_is_taken(storage: Path, packed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "UNPACKED_FLOOR", MIB)
    chance = random.Random(1)
    words = [f"word{number}" for number in range(200)]
    lines = [json.dumps({"text": " ".join(chance.choices(words, k=60))}) for _ in range(40)]
    text = "".join(f"{line}\n" for line in lines * 120).encode()  # each document again and again
    packed.write_bytes(gzip.compress(text))
    assert len(text) > max(2 * MIB, 60 * packed.stat().st_size)
    assert staged(Copy(str(packed), storage / "c.jsonl", "text")) == len(text)


def test_free_space_is_asked_for_again(storage: Path, packed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "SPACE_STEP", 8 * MIB)
    free = [100 * MIB, 20 * MIB, 5 * MIB]
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=free.pop(0)))
    disk.require_space(storage, 0)
    packed.write_bytes(gzip.compress(b'{"text": "%s"}\n' % (b"one " * 500) * (16 << 10), 1))
    with pytest.raises(StorageError, match="8,388,608 bytes are to be written, and 5,242,880 are free"):
        staged(Copy(str(packed), storage / "c.jsonl", "text"))
    assert (free, list(storage.iterdir())) == ([], [])
