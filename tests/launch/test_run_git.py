"""What a run's record says of the working directory's repository, without running what that names."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from cpt_launcher.launch import run


def git(*arguments: str) -> str:
    command = ["git", "-c", "user.name=a", "-c", "user.email=a@b", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A commit, and settings of the repository's own with a program that leaves a marker."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", "/dev/null")
    git("init", "-q")
    Path("a").write_text("a\n")
    git("add", "a")
    git("commit", "-qm", "one")
    return tmp_path / "ran"


def test_the_commit_and_whether_anything_differs(repository: Path) -> None:
    commit = git("rev-parse", "HEAD")
    assert run._git() == {"commit": commit, "changed": False}
    Path("a").write_text("b\n")
    assert run._git() == {"commit": commit, "changed": True}


@pytest.mark.parametrize("setting", ["core.fsmonitor", "core.hooksPath", "filter.x.clean", "filter.x.process"])
def test_a_program_that_a_repository_names_does_not_run(repository: Path, setting: str) -> None:
    hooks = repository.with_name("hooks")
    hooks.mkdir()
    program = hooks / "post-index-change"
    program.write_text(f"#!/bin/sh\ntouch {repository}\ncat\n")
    program.chmod(0o755)
    git("config", setting, str(hooks if setting == "core.hooksPath" else program))
    Path(".gitattributes").write_text("* filter=x\n")
    Path(".git/info/exclude").write_text("hooks\n.gitattributes\n")
    os.utime("a", (1, 1))  # so that git compares it
    found = run._git()
    assert not repository.exists()
    assert found == {"commit": git("rev-parse", "HEAD"), "changed": None if "filter" in setting else False}
    os.utime("a", (2, 2))
    subprocess.run(["git", "status"], capture_output=True, check=False)
    assert repository.exists()  # it would run
