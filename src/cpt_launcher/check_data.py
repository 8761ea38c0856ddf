"""Rules on dataset registries and on the data behind them."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from cpt_launcher import assets, corpus, dataset, names
from cpt_launcher import source as sources
from cpt_launcher.arguments import Arguments
from cpt_launcher.dataset import OUR_KEYS, REMOTE_KEYS, Entry
from cpt_launcher.errors import Problem
from cpt_launcher.findings import Finding, Severity, of
from cpt_launcher.records import Report
from cpt_launcher.suggest import unknown
from cpt_launcher.yamlfile import Document

# LLaMA-Factory 0.9.3, data/parser.py, DatasetAttr
ENTRY_KEYS = (
    *REMOTE_KEYS, *OUR_KEYS, "file_name", "formatting", "ranking", "subset", "split", "folder", "num_samples",
    "columns", "tags",
)  # fmt: skip
COLUMN_KEYS = (
    "prompt", "query", "response", "history", "messages", "system", "tools", "images", "videos", "audios", "chosen",
    "rejected", "kto_tag",
)  # fmt: skip
# Packing is worth a word where more than this share of the blocks is likely lost.
LOSS = 0.01
MAP_BATCH = 1000  # documents, preprocessing_batch_size's default


def is_registry(path: Path, values: Mapping[str, object]) -> bool:
    """Whether a mapping is a dataset registry."""
    signs = {*REMOTE_KEYS, "file_name", "source"}
    entries = [isinstance(entry, dict) and bool(signs & set(entry)) for entry in values.values()]
    return path.name == "dataset_info.json" or (bool(entries) and all(entries))


def check_entry(document: Document, entry: Entry, *, used: bool, run: str = "") -> Iterator[Finding]:
    """One entry. `used`: continued pre-training wants it, so that its columns are no matter of taste; `run`: by the run
    of that name.
    """
    name, fields = entry.name, entry.fields

    def finding(severity: Severity, rule: str, what: str, hint: str = "", *key: str) -> Finding:
        return of(Problem(what, document.where(name, *key), hint, rule), severity)

    for key, hint in unknown(fields, ENTRY_KEYS):
        yield finding("warning", "registry-key", f"LLaMA-Factory ignores '{key}'", hint, key)
    raw = fields.get("columns")
    columns = raw if isinstance(raw, dict) else {}
    for key, near in unknown(columns, COLUMN_KEYS):
        hint = near or f'"prompt": "{key}" names the text column'
        yield finding("error", "registry-columns", f"'{key}' is no role of a column", hint, "columns", key)
    if not isinstance(columns.get("prompt"), str):
        what = f"entry '{name}' does not say which column holds the text"
        severity: Severity = "error" if used else "warning"
        yield finding(severity, "registry-columns", what, '"columns": {"prompt": "text"}', "columns")
    if used and ("response" in columns or "history" in columns or fields.get("formatting") == "sharegpt"):
        what = "continued pre-training uses the prompt column alone; the rest of each record is left out"
        yield finding("warning", "registry-format", what, "join the texts in one column", "columns")
    if used and fields.get("ranking") is True:
        yield finding("error", "registry-format", "ranking data is not for pre-training", "remove it", "ranking")
    if fields.get("formatting") not in (None, "alpaca", "sharegpt"):
        hint = "leave it out: alpaca is the default"
        yield finding("error", "registry-format", f"no such formatting: {fields['formatting']!r}", hint, "formatting")
    if fields.get("num_samples") is not None:
        what = f"{fields['num_samples']} random documents are used, repeated if there are fewer"
        yield finding("warning", "registry-samples", what, "remove it to use each once", "num_samples")
    bad = [*_addresses(document, entry), *_sha256(document, entry)]
    yield from bad or _file(document, entry, run)


def _addresses(document: Document, entry: Entry) -> Iterator[Finding]:
    """Where an entry's data is said to be, and is to be."""
    registry = document.value if isinstance(document.value, dict) else {}
    written = registry.get(entry.name)
    for key in ("source", "file_name", "cloud_file_name"):
        text = written.get(key) if isinstance(written, dict) else None
        if text is None or (entry.on_storage and key == "source"):
            continue
        where = document.where(entry.name, key)
        if not isinstance(text, str):
            yield of(Problem(f"'{key}' must be text", where, '"file_name": "corpus.jsonl"', "registry-source"))
        elif wrong := sources.refused(text):
            yield of(Problem(f"'{key}': {wrong}", where, sources.allowed(), "registry-source"))
        elif key == "cloud_file_name" and (wrong := dataset.wrong_cloud(text)):
            yield of(Problem(f"LLaMA-Factory cannot read it: {wrong}", where, "s3://bucket/c.jsonl", "registry-source"))


def _sha256(document: Document, entry: Entry) -> Iterator[Finding]:
    if entry.sha256 is None:
        return
    where = document.where(entry.name, "sha256")
    if not re.fullmatch(r"[0-9a-f]{64}", entry.sha256):
        yield of(Problem("'sha256' must be 64 hexadecimal digits", where, "as sha256sum prints it", "registry-source"))
    elif entry.source is None or sources.is_folder(entry.source) or assets.is_dir(entry.source):
        yield of(Problem("'sha256' is of a single file", where, "remove it", "registry-source"))


def _file(document: Document, entry: Entry, run: str) -> Iterator[Finding]:
    key = "source" if document.keys.get((entry.name, "source")) else "file_name"
    where = document.where(entry.name, key)
    if entry.source is None:
        return
    path = Path(entry.source)
    is_remote = "://" in entry.source
    if not is_remote and not assets.is_dir(path) and not assets.is_file(path):
        given = str(entry.fields.get(key, ""))
        mounted = given.startswith("/") and not entry.on_storage
        severity: Severity = "warning" if mounted else "error"  # the cluster may have it
        hint = "" if mounted else "a path is relative to the registry's folder"
        hint = "put it there, or give the run an entry of your own" if entry.on_storage else hint
        yield of(Problem(f"the data of '{entry.name}' is not there: {path}", where, hint, "registry-file"), severity)
        return
    if misnamed := list(_target(document, entry, run)):
        yield from misnamed
    elif not is_remote and assets.is_dir(path):
        if wrong := dataset.wrong_shards(path):
            yield of(Problem(wrong[0], where, wrong[1], "registry-file"))
    elif not sources.is_folder(entry.source) and (what := names.wrong_kinds([entry.staged_name])):
        hint = f'"file_name" says what it is called on the storage: NAME.jsonl, or {" ".join(corpus.EXTENSIONS)}'
        yield of(Problem(f"'{entry.staged_name}': {what}", where, hint, "registry-file"))


def _target(document: Document, entry: Entry, run: str) -> Iterator[Finding]:
    """What is wrong with the name that an entry's data gets on the storage."""
    if entry.on_storage or entry.cloud is not None:
        return
    name = entry.staged_name
    if wrong := "the run has that name" if name == run else names.wrong_target(name):
        where = document.where(entry.name, "file_name" if entry.fields.get("file_name") else "source")
        what = f"the data of '{entry.name}' cannot be called {name!r} on the storage: {wrong}"
        yield of(Problem(what, where, 'give it another "file_name"', "registry-file"))


def check_bytes(entry: Entry, args: Arguments | None) -> tuple[list[Finding], list[str]]:
    """Read a local dataset: findings on its records, and a line of counts."""
    columns = entry.fields.get("columns")
    column = columns.get("prompt") if isinstance(columns, dict) else None
    if entry.source is None or "://" in entry.source or not isinstance(column, str):
        return [], [f"{entry.name}: not read, it is not on this machine or names no text column"]
    found: list[Finding] = []
    reports = []
    for path in dataset.shards(Path(entry.source)) or [Path(entry.source)]:
        if not corpus.is_readable(path.suffix) or not assets.is_file(path):
            return [], [f"{entry.name}: not read ({path.suffix or 'no ending'})"]
        try:
            report = corpus.read(path, column)
        except OSError as error:
            return [of(Problem(f"cannot read it: {error.strerror}", str(path), rule="registry-file"))], []
        reports.append(report)
        found += _records(report)
    documents, tokens = sum(r.documents for r in reports), sum(r.tokens for r in reports)
    size = sum(r.text_bytes for r in reports)
    note = f"{entry.name}: {documents:,} documents, {size:,} bytes of text, about {tokens:,} tokens (estimated)"
    block = args.whole("cutoff_len", 0) if args else 0
    if args is None or block < 1 or not documents:
        return found, [note]
    return found + _packing(args, entry, documents, size, tokens), [f"{note}, {tokens // block:,} blocks of {block}"]


def _records(report: Report) -> Iterator[Finding]:
    yield from (of(problem) for problem in report.problems())
    if report.empty:
        what = f"{report.empty_count:,} records without text, the first in line {report.empty[0]}"
        hint = "each trains one end-of-text token"
        yield of(Problem(what, f"{report.path}:{report.empty[0]}:1", hint, "data-record"), "warning")


def _packing(args: Arguments, entry: Entry, documents: int, size: int, tokens: int) -> list[Finding]:
    """Blocks and what is lost of them. Each map batch of each process drops what does not fill a block
    (LLaMA-Factory 0.9.3, data/processor/pretrain.py): half a block on average.
    """
    where = args.where("dataset")
    block = args.whole("cutoff_len", 1)
    if size + documents < block:  # not even at a token a byte
        what = f"'{entry.name}' cannot fill one block of {block} tokens"
        return [of(Problem(what, where, "more text, or a smaller cutoff_len", "data-size"))]
    blocks = tokens // block
    step = args.whole("per_device_train_batch_size", 1) * args.whole("ray_num_workers", 1)
    if blocks < step:
        what = f"'{entry.name}' has about {blocks} blocks of {block} tokens, and a step takes {step}"
        return [of(Problem(what, where, "more text, or a smaller cutoff_len", "data-size"), "warning")]
    processes = max(1, min(args.whole("preprocessing_num_workers", 1), documents))
    batch = args.whole("preprocessing_batch_size", MAP_BATCH)
    batches = processes * math.ceil(documents / processes / batch)
    if batches > 1 and batches / 2 > LOSS * blocks:
        what = f"about {batches / 2:.0f} of {blocks} blocks are lost: {batches} map batches each drop their remainder"
        hint = "preprocessing_num_workers: 1" if processes > 1 else "a larger preprocessing_batch_size"
        return [of(Problem(what, args.where("preprocessing_num_workers"), hint, "data-loss"), "warning")]
    return []
