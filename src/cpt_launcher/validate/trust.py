"""Rules on what a config lets run: code of a model or a dataset, and variables that choose programs. And the mark that
silences one of them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from cpt_launcher import shipped
from cpt_launcher.config.document import Document
from cpt_launcher.errors import Problem
from cpt_launcher.staging import model_files
from cpt_launcher.staging.dataset import Entry
from cpt_launcher.validate.arguments import Arguments, short
from cpt_launcher.validate.report import Finding, of

# What each does to the processes that get it: the workers, and the launcher's own children.
PROGRAMS = {
    "BASH_ENV": "has every shell script run another one first",
    "CC": "chooses the compiler that DeepSpeed starts",
    "CXX": "chooses the compiler that DeepSpeed starts",
    "HF_ENDPOINT": "chooses the server that models come from and HF_TOKEN goes to",
    "LD_AUDIT": "loads a library into every process",
    "LD_LIBRARY_PATH": "chooses the libraries that every process loads",
    "LD_PRELOAD": "loads a library into every process",
    "PATH": "chooses the programs that are started",
    "PYTHONHOME": "chooses the Python modules that are imported",
    "PYTHONPATH": "chooses the Python modules that are imported",
    "PYTHONSTARTUP": "has Python run a file first",
    "RAY_ADDRESS": "chooses the cluster that the run and its secrets go to",
}
HUBS = ("hf_hub_url", "ms_hub_url", "om_hub_url")
_MARK = re.compile(r"#\s*cpt:\s*allow\s+([a-z-]+)(?:\s+for\s+(\S+))?\s*$")


def model(args: Arguments, name: object) -> Iterator[Finding]:
    """What the model brings along: code, and files that lead out of the run's folder."""
    if args.get("trust_remote_code") is True:
        what = f"trust_remote_code: every worker runs what code {str(name or 'the model')[:200]} brings along"
        key = "model_revision" if "model_name_or_path" in args.given else "train.model_revision"
        hint = f"leave it out: Gemma, Llama and Qwen need none; else pin the code that you have read with {key}"
        yield args.warning("remote-code", "trust_remote_code", what, hint)
    if isinstance(name, str) and name.startswith("/") and shipped.is_dir(name):
        where = args.where("model_name_or_path")
        for problem in model_files.check(Path(name)):
            what = f"{problem.what} ({problem.where})"
            yield of(replace(problem, what=what, where=where, rule="model-files"))


def dataset(args: Arguments, entry: Entry) -> Iterator[Finding]:
    """`trust_remote_code` is LLaMA-Factory's switch for a dataset's scripts too (data/loader.py)."""
    if args.get("trust_remote_code") is not True:
        return
    if script := entry.fields.get("script_url"):
        what = f"trust_remote_code runs the script {short(script)} of the dataset '{entry.name}' too"
        hint = "leave trust_remote_code out, or name the data's file instead of a script"
        yield args.error("remote-code", "dataset", what, hint)
    for key in HUBS:
        if repository := entry.fields.get(key):
            what = f"trust_remote_code runs what script the dataset repository {short(repository)} has too"
            yield args.warning("remote-code", "dataset", what, "leave it out, or name the data's file")


def environment(values: Mapping[str, object], where: Callable[[str], str]) -> Iterator[Finding]:
    """Variables that a file sets and that change what is executed; on the command line they are the user's own."""
    for name in values:
        if name in PROGRAMS and where(name) != "command line":
            hint = "is the file from somebody you trust? Then mark the line: # cpt: allow env-program"
            what = f"{name} in a config {PROGRAMS[name]}"
            yield of(Problem(what, where(name), hint, "env-program"), "warning")


def spoken(findings: Sequence[Finding], document: Document) -> list[Finding]:
    """The findings without those warnings whose line says `# cpt: allow RULE`; with `for WHAT`, only as long as the
    warning is about it.
    """
    marks = {number: mark for number, line in enumerate(document.text.split("\n"), 1) if (mark := _MARK.search(line))}
    return [
        found for found in findings if found.path != str(document.path) or not _is_allowed(found, marks.get(found.line))
    ]


def _is_allowed(finding: Finding, mark: re.Match[str] | None) -> bool:
    if mark is None or finding.severity != "warning" or mark[1] != finding.rule:
        return False
    return mark[2] is None or mark[2] in re.split(r"[\s'\"(),;]+", finding.message)
