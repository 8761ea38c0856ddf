"""Writing where others may write too: nothing of theirs leads us to files of ours."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cpt_launcher import disk, safe_open
from cpt_launcher.errors import StorageError
from cpt_launcher.staging import stage
from cpt_launcher.staging.dataset import Copy

OTHER = 65534
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file to another user")


@pytest.fixture
def precious(tmp_path: Path) -> Path:
    """A file of ours, outside the storage, that only we may read."""
    path = tmp_path / "home" / ".bashrc"
    path.parent.mkdir()
    path.write_text("precious\n")
    path.chmod(0o600)
    return path


@pytest.fixture
def storage(tmp_path: Path) -> Path:
    path = tmp_path / "storage"
    path.mkdir()
    return path


@pytest.fixture
def umask() -> Iterator[None]:
    before = os.umask(0o022)
    yield
    os.umask(before)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_part_is_not_written_through_a_link(storage: Path, precious: Path) -> None:
    part = storage / ".a.jsonl.cpt-part"
    part.symlink_to(precious)
    with (
        pytest.raises(StorageError, match="a link is in the way") as caught,
        disk.part_of(storage / "a.jsonl", None) as made,
    ):
        made.file.write(b"corpus")
    assert caught.value.problems[0].hint == f"remove it: rm {part}"
    assert (precious.read_text(), mode(precious)) == ("precious\n", 0o600)


def test_sweeping_takes_the_link_and_leaves_what_it_leads_to(storage: Path, precious: Path) -> None:
    for name in (".a.jsonl.cpt-part", ".b.jsonl.cpt-part", ".b.jsonl.cpt-part.note", ".c.cpt-temp"):
        (storage / name).symlink_to(precious)
    (storage / ".a.jsonl.cpt-part.note").write_text("x")
    os.mkfifo(storage / ".d.jsonl.cpt-part")
    disk.sweep(storage)
    assert sorted(path.name for path in storage.iterdir()) == [".c.cpt-temp", ".d.jsonl.cpt-part"]
    assert precious.read_text() == "precious\n"


@pytest.mark.parametrize(
    "write",
    [
        lambda path: disk.append_to(path).close(),
        disk.touch,
        lambda path: disk.copy_file(Path(__file__), path),
        lambda path: disk.lock(path).__enter__(),
        lambda path: disk.lock(path, wait=False).__enter__(),
    ],
    ids=["append_to", "touch", "copy_file", "lock", "run lock"],
)
def test_no_link_and_no_pipe_is_written_to(storage: Path, precious: Path, write: Callable[[Path], object]) -> None:
    os.utime(precious, (1, 1))
    path = storage / "cpt" / "train.log"
    path.parent.mkdir()
    path.symlink_to(precious)
    with pytest.raises(StorageError, match="a link is in the way"):
        write(path)
    path.unlink()
    path.symlink_to(storage / "absent")
    with pytest.raises(StorageError, match="a link is in the way"):
        write(path)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(StorageError, match="no plain file is in the way"):
        write(path)
    assert (precious.read_text(), precious.stat().st_mtime) == ("precious\n", 1.0)
    assert not (storage / "absent").exists()


def test_an_export_does_not_open_up_what_it_links_to(storage: Path, precious: Path) -> None:
    (storage / "model.safetensors").write_text("x")
    (storage / "model.safetensors").chmod(0o600)
    (storage / "link").symlink_to(precious)
    disk.sync_tree(storage)
    assert (mode(storage / "model.safetensors") & 0o044, mode(precious)) == (0o044, 0o600)


@needs_root
def test_a_part_of_another_user_is_not_gone_on_with(storage: Path) -> None:
    part = storage / ".a.jsonl.cpt-part"
    part.write_text('{"text": "theirs"}\n')
    (storage / ".a.jsonl.cpt-part.note").write_text("v1")
    os.chown(part, OTHER, OTHER)
    with pytest.raises(StorageError, match="a copy by nobody") as caught, disk.part_of(storage / "a.jsonl", "v1"):
        pass
    assert f"rm {part}" in caught.value.problems[0].hint
    assert part.read_text() == '{"text": "theirs"}\n'


def test_a_part_with_a_second_name_is_not_gone_on_with(storage: Path, precious: Path) -> None:
    os.link(precious, storage / ".a.jsonl.cpt-part")
    with pytest.raises(StorageError, match="second name"), disk.part_of(storage / "a.jsonl", None):
        pass
    assert precious.read_text() == "precious\n"


def test_a_note_that_is_no_text_starts_the_copy_over(storage: Path) -> None:
    (storage / ".a.jsonl.cpt-part").write_text("theirs")
    (storage / ".a.jsonl.cpt-part.note").write_bytes(b"\xff\x00")
    with disk.part_of(storage / "a.jsonl", "v1") as part:
        assert part.start == 0
        part.file.write(b"ours")
        part.publish()
    assert (storage / "a.jsonl").read_text() == "ours"
    assert sorted(path.name for path in storage.iterdir()) == ["a.jsonl"]


@needs_root
def test_a_folder_that_another_user_linked_is_not_written_to(storage: Path, precious: Path) -> None:
    (storage / "run").mkdir()
    link = storage / "run" / "cpt"
    link.symlink_to(precious.parent)
    disk.require_no_foreign_links(storage, link)
    os.lchown(link, OTHER, OTHER)
    with pytest.raises(StorageError, match=f"link to {precious.parent} that nobody made"):
        disk.require_no_foreign_links(storage, link / "tokens")
    elsewhere = storage.parent / "mnt"
    elsewhere.symlink_to(storage)
    os.lchown(elsewhere, OTHER, OTHER)
    disk.require_no_foreign_links(elsewhere, elsewhere / "run")


@pytest.mark.parametrize("of_storage", [0o700, 0o755, 0o775, 0o2775, 0o1777])
def test_the_lock_lets_in_whom_the_storage_lets_in(storage: Path, umask: None, of_storage: int) -> None:
    storage.chmod(of_storage)
    lock = storage / ".cpt" / "lock"
    for _ in range(2):
        with disk.lock(lock) as mine:
            assert mine
        assert (mode(lock.parent), mode(lock)) == (of_storage, of_storage & 0o666)
        lock.parent.chmod(0o755)
        lock.chmod(0o644)


def test_a_runs_own_lock_keeps_to_the_umask(storage: Path, umask: None) -> None:
    storage.chmod(0o2775)
    with disk.lock(storage / "run" / "cpt" / "lock", wait=False):
        pass
    assert mode(storage / "run" / "cpt") & 0o777 == 0o755
    assert mode(storage / "run" / "cpt" / "lock") == 0o644


AS_OTHER = """
import os, sys
from pathlib import Path
from cpt_launcher import disk
os.setgid({user}); os.setgroups([{group}]); os.setuid({user}); os.umask(0o022)
with disk.lock(Path(sys.argv[1]) / ".cpt" / "lock"):
    disk.write_text(Path(sys.argv[1]) / ".cpt" / "manifest.json", "by {user}")
"""


@pytest.fixture
def open_to_all() -> Iterator[Path]:
    """A folder that other users reach, which pytest's own are not."""
    with tempfile.TemporaryDirectory() as place:
        Path(place).chmod(0o755)
        yield Path(place)


@needs_root
@pytest.mark.parametrize("of_storage", [0o2775, 0o770])
def test_two_users_of_a_group_share_it(open_to_all: Path, umask: None, of_storage: int) -> None:
    storage = open_to_all / "storage"
    storage.mkdir()
    os.chown(storage, 0, 40000)
    storage.chmod(of_storage)
    for user in (40001, 40002):
        code = AS_OTHER.format(user=user, group=40000)
        subprocess.run([sys.executable, "-c", code, str(storage)], check=True, cwd="/")
    assert (storage / ".cpt" / "manifest.json").read_text() == "by 40002"


def test_who_is_waited_for_is_said(
    storage: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(safe_open, "PATIENCE_SECONDS", 0.1)
    lock, held, done = storage / ".cpt" / "lock", threading.Event(), threading.Event()

    def hold() -> None:
        with disk.lock(lock):
            held.set()
            done.wait(10)

    holder = threading.Thread(target=hold)
    holder.start()
    held.wait(10)
    threading.Timer(0.6, done.set).start()
    began = time.monotonic()
    with disk.lock(lock) as mine:
        assert mine
        assert time.monotonic() - began > 0.3
    holder.join()
    me = f"{safe_open.user_name(os.geteuid())} on {os.uname().nodename}, process {os.getpid()}"
    assert caplog.messages == [f"waits for {lock}, held by {me}"]
    assert lock.read_text() == ""


def test_a_second_copy_of_a_file_waits_for_the_first(
    storage: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(safe_open, "PATIENCE_SECONDS", 0.1)
    held, done = threading.Event(), threading.Event()

    def copy() -> None:
        with disk.part_of(storage / "a.jsonl", "v1") as part:
            held.set()
            done.wait(10)
            part.file.write(b"first")
            part.publish()

    first = threading.Thread(target=copy)
    first.start()
    held.wait(10)
    threading.Timer(0.6, done.set).start()
    with disk.part_of(storage / "a.jsonl", "v1") as part:
        assert (storage / "a.jsonl").read_text() == "first"
        part.discard()
    first.join()
    assert caplog.messages == [f"waits for {storage}/.a.jsonl.cpt-part, held by another copy of the same file"]


def test_the_umask_is_asked_without_changing_it(storage: Path, umask: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "umask", lambda _: pytest.fail("other threads would see it"))
    disk.write_text(storage / "a", "x")
    assert mode(storage / "a") == 0o644


@needs_root
def test_bad_records_are_not_put_where_another_users_link_leads(
    storage: Path, precious: Path, tmp_path: Path, umask: None
) -> None:
    storage.chmod(0o2775)
    source = tmp_path / "a.jsonl"
    source.write_text('{"text": "one"}\nbad\n')
    copy, options = Copy(str(source), storage / "a.jsonl", "text"), stage.Options(skip_bad=True)
    link = storage / ".cpt" / "quarantine"
    link.parent.mkdir()
    link.symlink_to(precious.parent)
    os.lchown(link, OTHER, OTHER)
    with pytest.raises(StorageError, match="that nobody made"):
        stage.stage([copy], {}, storage, report=lambda _: None, options=options)
    assert list(precious.parent.iterdir()) == [precious]
    link.unlink()
    stage.stage([copy], {}, storage, report=lambda _: None, options=options)
    assert (mode(link), [path.name for path in link.iterdir()]) == (0o2775, ["a.jsonl.jsonl"])
