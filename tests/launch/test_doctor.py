import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from cpt_launcher.launch import doctor, preflight

from ..conftest import Outcome

Cpt = Callable[..., Outcome]


class Disk:
    """What `shutil.disk_usage` tells."""

    def __init__(self, free: int) -> None:
        self.free = free


def item(name: str, environ: dict[str, str], storage: Path | None = None) -> doctor.Item:
    (found,) = [one for one in doctor.examine(environ, storage) if one.name == name]
    return found


def test_a_full_storage_is_lacking(
    cpt: Cpt, tmp_path: Path, clean_env: pytest.MonkeyPatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    environ = {"RAY_TMPDIR": str(tmp_path)}
    assert item("storage", environ, tmp_path).lacks == ""
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Disk(26_000_000))
    full = item("storage", environ, tmp_path)
    assert (full.has, full.lacks) == (f"{tmp_path}, 26.0 MB free", "less than 1.0 GB is free")


def test_a_storage_alone_ends_in_its_own_code(cpt: Cpt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lacking = doctor.Item("storage", "/s", "the storage is not there", "mkdir -p /s")
    monkeypatch.setattr(doctor, "examine", lambda *_: (doctor.Item("python", "3.11"), lacking))
    done = cpt("doctor", "--storage", "/s")
    assert (done.code, done.err.splitlines()[1]) == (5, "  where: /s")
    monkeypatch.setattr(doctor, "examine", lambda *_: (doctor.Item("stack", "", "not installed"), lacking))
    assert cpt("doctor", "--storage", "/s").code == 4


def test_hidden_gpus_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "gpus_here", lambda: 4)
    monkeypatch.setattr(preflight.record, "gpu_names", tuple)
    environ = {"RAY_TMPDIR": str(tmp_path)}
    assert item("gpus", environ).has == "4"
    told = item("gpus", {**environ, "CUDA_VISIBLE_DEVICES": "1"}).has
    assert told == "4; CUDA_VISIBLE_DEVICES=1 leaves 1 of 4 to runs started here"
