"""Secrets in files, by what a key is called, by how a value looks, and in URLs. No message shows one."""

from __future__ import annotations

import re
from collections.abc import Iterator

from cpt_launcher import urls
from cpt_launcher.config.document import Document, KeyPath
from cpt_launcher.errors import Problem
from cpt_launcher.secrets import MIN_LENGTH, telling

# Hugging Face, GitHub, GitLab, Slack, Google, JSON web tokens, AWS, Databricks, OpenAI and Anthropic, PEM
_SHAPE = re.compile(
    r"\b(hf_[A-Za-z0-9]{20,}|github_pat_\w{20,}|gh[pousr]_\w{30,}|glpat-[\w-]{20,}|xox[abprs]-[\w-]{10,}"
    r"|AIza[\w-]{35}|eyJ[\w-]{10,}\.[\w-]{10,}|(?:AKIA|ASIA)[0-9A-Z]{16}|dapi[0-9a-f]{30,}"
    r"|sk-(?:(?:proj|ant|svcacct|admin|or)-[\w-]{20,}|[A-Za-z0-9]{20,}))"
    r"|-----BEGIN (?!CERTIFICATE|PUBLIC)"
)
_REFERENCE = re.compile(r"\$\{?\w+\}?")
_REVOKE = "remove it and revoke it: it has been in a file. Export it where you start the run"
_LOCAL = "leave it out: use a local copy, or s3://, gs:// or hf:// with the credentials of your environment"
_MLFLOW = "leave the address out, write `secrets: [MLFLOW_TRACKING_URI]` and export MLFLOW_TRACKING_URI"
# The variables that are read where these arguments are not given.
_VARIABLES = {
    "hub_token": "HF_TOKEN",
    "hf_hub_token": "HF_TOKEN",
    "push_to_hub_token": "HF_TOKEN",
    "swanlab_api_key": "SWANLAB_API_KEY",
}


def check(document: Document, *at: str) -> list[Problem]:
    """Every secret in a document, or below a key of it, at its key; without a key, those in comments too."""
    value = document.value
    for key in at:
        value = value.get(key) if isinstance(value, dict) else None
    found = [(path, str(leaf), _problem(path, leaf)) for path, leaf in leaves(value, at)]
    problems = [
        Problem(wrong[0], document.where(*path), wrong[1], "secret-in-file") for path, _, wrong in found if wrong
    ]
    return problems + ([] if at else list(_comments(document, "\n".join(text for _, text, _ in found))))


def _problem(path: KeyPath, value: object) -> tuple[str, str] | None:
    """What is wrong with a value, and what to do; None for one that is no secret."""
    name = next((key for key in reversed(path) if isinstance(key, str)), "")
    dotted = ".".join(map(str, path))
    text = str(value).strip()
    if not _may_be_one(value, text):
        return None
    if path[:1] != ("secrets",) and _by_name(name, text):
        return f"{dotted} looks like a secret, and a file is no place for one", _export(path, name)
    if _SHAPE.search(text):
        return "this looks like a secret", _REVOKE
    inside = next(_in_urls(text), None)
    if inside is None:
        return None
    what = "a password" if inside == "password" else f"a secret ({inside})"
    hint = _MLFLOW if path[:1] == ("tracking",) else _export(path, name) if path[:1] == ("env",) else _LOCAL
    return f"{dotted} holds {what} in a URL, and a file is no place for one", hint


def _may_be_one(value: object, text: str) -> bool:
    """Not a switch, a small number, nothing, or a reference to a variable."""
    if isinstance(value, bool) or not isinstance(value, str | int):
        return False
    return bool(text) and not _REFERENCE.fullmatch(text) and (isinstance(value, str) or len(text) >= MIN_LENGTH)


def _by_name(name: str, text: str) -> bool:
    """By its name, and where that is just `..._key`, by a value that is neither a word nor a path."""
    is_mixed = re.search(r"\d", text) and re.search(r"[A-Za-z]", text) and not re.search(r"[\s/]", text)
    return telling(name, text if is_mixed else "")


def _export(path: KeyPath, name: str) -> str:
    variable = name if name.isupper() else _VARIABLES.get(name)
    if path[0] == "env" and variable:
        return f"remove it, write `secrets: [{name}]` and export {name} where you start the run"
    if variable is None:
        return "remove it; sign in where you start the run, or export there the variable that its library reads"
    named = f", and write `secrets: [{variable}]`" if path[0] == "train" else ""
    return f"remove it and `export {variable}=...` where you start the run{named}"


def _in_urls(text: str) -> Iterator[str]:
    return (name for name, value in urls.secrets(text) if not _REFERENCE.fullmatch(value))


def _comments(document: Document, values: str) -> Iterator[Problem]:
    """What stands in the text and in no value: a run keeps the text of its config, comments and all."""
    for number, line in enumerate(document.text.splitlines(), start=1):
        shapes = [match for match in _SHAPE.finditer(line) if match[0] not in values]
        column = shapes[0].start() if shapes else line.find("#")
        comment = line[column:] if column >= 0 else ""
        if shapes or any(value not in values for _, value in urls.secrets(comment) if not _REFERENCE.fullmatch(value)):
            yield Problem(
                "this line holds a secret", f"{document.path}:{number}:{column + 1}", _REVOKE, "secret-in-file"
            )


def leaves(value: object, at: KeyPath = ()) -> Iterator[tuple[KeyPath, object]]:
    """Every value that is no mapping and no list, with the keys that lead to it."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from leaves(item, (*at, key))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from leaves(item, (*at, index))
    else:
        yield at, value
