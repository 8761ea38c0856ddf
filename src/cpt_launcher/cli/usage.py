"""A command line that Typer does not take, as a problem of ours: what is wrong, and what to type instead."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence

import typer

from cpt_launcher.config import arguments
from cpt_launcher.config.launcher import LAUNCHER_KEYS
from cpt_launcher.config.suggest import near
from cpt_launcher.errors import Problem

# The root of Typer's usage errors. It is click's, or that of Typer's own copy of click: Typer has moved it.
Wrong: type[Exception] = typer.BadParameter.__mro__[1]


def problem(error: Exception, argv: Sequence[str]) -> Problem:
    """What Typer says of a command line, in our form.

    Args:
        error: a `Wrong`.
        argv: the arguments, without the program.
    """
    context = getattr(error, "ctx", None)
    command = context.command_path if context else "cpt"
    option = getattr(error, "option_name", None)
    if context and option and "No such option" in str(error):
        known = [name for one in context.command.params for name in one.opts if name.startswith("-")]
        overrides = any(one.name in ("overrides", "paths") for one in context.command.params)
        return Problem(
            f"`{command}` has no option {option}", "command line", _instead(option, argv, command, known, overrides)
        )
    said = str(getattr(error, "format_message", lambda: error)())
    what = said.partition(". Did you mean")[0].partition(", unable to")[0].rstrip(".")
    what = what.replace("Value error, ", "")  # Pydantic's, before what Typer says
    hint = f"{_usage(context.get_usage())} (more: {command} --help)" if context else "see cpt --help"
    commands: Collection[str] = getattr(getattr(context, "command", None), "commands", {})
    wrong = next((word for word in argv if f"'{word}'" in what), "")
    if commands and wrong:
        begun = next((f"did you mean '{name}'?" for name in commands if name.startswith(wrong)), "")
        hint = begun or near(wrong, commands, f"the commands are {', '.join(commands)}")
    return Problem(what[:1].lower() + what[1:], "command line", hint)


def _usage(text: str) -> str:
    """`cpt run [OPTIONS] CONFIG [KEY=VALUE]...`"""
    return re.sub(r"\{(\w+)\}", lambda match: match[1].upper(), " ".join(text.removeprefix("Usage: ").split()))


def _instead(option: str, argv: Sequence[str], command: str, known: Collection[str], overrides: bool) -> str:
    """What to type in place of an option that is none."""
    name = option.lstrip("-").replace("-", "_")
    at = next((number for number, word in enumerate(argv) if word.partition("=")[0] == option), len(argv))
    attached, following = "".join(argv[at : at + 1]).partition("=")[2], "".join(argv[at + 1 : at + 2])
    value = attached or (following if following and not following.startswith("-") else "...")
    if overrides and name in LAUNCHER_KEYS:
        return f"write it as an override, without dashes: {name}={value}"
    if overrides and name in arguments.load().arguments:
        return f"write it as an override, without dashes: train.{name}={value}"
    return near(option, known, f"its options: {', '.join(known)}" if known else f"see {command} --help")
