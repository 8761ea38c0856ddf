"""What reaches a terminal."""

from __future__ import annotations

import pytest

from cpt_launcher import escapes
from cpt_launcher.cli import show
from cpt_launcher.validate import report
from cpt_launcher.validate.report import Finding


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a\tb\nc", "a\tb\nc"),
        ("\x1b[1;31mred\x1b[0m", "red"),
        ("\x1b[2J\x1b]0;t\x07\r\x7f\x9b", "\\x1b[2J\\x1b]0;t\\x07\\x0d\\x7f\\x9b"),
        ("a\u202eb\u2028c\udcff", "a\\u202eb\\u2028c\\udcff"),
        ("Größe 数 🙂", "Größe 数 🙂"),
    ],
)
def test_shown(text: str, expected: str) -> None:
    assert escapes.shown(text) == expected


def test_colours_of_a_training_may_stay() -> None:
    assert escapes.shown("\x1b[36ma\x1b[0m\x1b[2J", colours=True) == "\x1b[36ma\x1b[0m\\x1b[2J"


BREAKS = "x\n::error ::y\r\n::stop-commands::t\u2028::z"


def test_a_message_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    show.note(BREAKS)
    show.say(BREAKS)
    assert capsys.readouterr().err == (
        "cpt: x ::error ::y ::stop-commands::t ::z\nx ::error ::y ::stop-commands::t ::z\n"
    )
    found = [Finding(f"a{BREAKS}.yaml", 1, 2, "error", "wrong-value", BREAKS, BREAKS)]
    assert report.as_text(found).count("\n") == 1
    assert report.as_github(found).count("\n") == 1
