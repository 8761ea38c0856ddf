"""The README is under test: its commands run, and it names every command and its options."""

import json
import re
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import typer

from cpt_launcher import __version__
from cpt_launcher.cli import app
from cpt_launcher.config import arguments
from cpt_launcher.launch import preflight

from .conftest import REPOSITORY, Outcome

README = (REPOSITORY / "README.md").read_text()
BLOCKS = re.findall(r"```console\n(.*?)```", README, re.DOTALL)


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.splitlines()[-1])
def test_console_blocks_run(
    block: str, cpt: Callable[..., Outcome], clean_env: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    clean_env.chdir(REPOSITORY)
    for line in block.splitlines():
        words = shlex.split(line.removeprefix("$ ").replace("/tmp/", f"{tmp_path}/"))
        if words[0] == "cpt":
            done = cpt(*words[1:])
            assert done.code == 0, done.err
        else:
            subprocess.run(words, check=True)


def test_every_command_and_option_is_documented() -> None:
    commands = typer.main.get_command(app.app).commands
    sections: dict[str, str] = {}
    for title, text in re.findall(r"^### (`cpt .*?)$(.*?)(?=^##)", README, re.DOTALL | re.MULTILINE):
        sections |= dict.fromkeys(re.findall(r"`cpt ([\w-]+)", title), title + text)
    assert set(sections) == set(commands)
    assert len(sections) == 19
    for name, command in commands.items():
        options = {option for parameter in command.params for option in parameter.opts if option.startswith("--")}
        assert {option for option in options if option not in sections[name]} == set()


def test_the_changelog_knows_this_version() -> None:
    assert f"## {__version__}" in (REPOSITORY / "CHANGELOG.md").read_text()


def test_registry_examples_are_json() -> None:
    for block in re.findall(r"```json\n(.*?)```", README, re.DOTALL):
        json.loads(block)


def test_the_rules_page_is_the_rules() -> None:
    page = (REPOSITORY / "docs" / "rules.md").read_text()
    assert dict(re.findall(r"^\| `([\w-]+)` \| (.*) \|$", page, re.MULTILINE)) == arguments.rules()


def test_the_failures_page_names_only_rules_that_exist() -> None:
    page = (REPOSITORY / "docs" / "failures.md").read_text()
    named = {
        name for row in page.splitlines() for name in re.findall(r"`([a-z]+(?:-[a-z]+)+)`", row.rpartition(" | ")[2])
    }
    known = REPOSITORY / "src" / "cpt_launcher" / "data" / "causes.json"
    causes = {row["id"] for row in json.loads(known.read_text())}
    assert named <= {*arguments.rules(), *preflight.names(), *causes}
    rows = [number for cell in re.findall(r"^\| ([\d, ]+) \|", page, re.MULTILINE) for number in cell.split(", ")]
    assert sorted(map(int, rows)) == list(range(1, 103))
