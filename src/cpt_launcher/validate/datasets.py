"""Rules on dataset registries and on the data behind them."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from cpt_launcher import shipped
from cpt_launcher.config import document as yamlfile
from cpt_launcher.config import names
from cpt_launcher.config.document import Document
from cpt_launcher.config.suggest import unknown
from cpt_launcher.errors import DataError, Problem
from cpt_launcher.staging import corpus, dataset, reading, sources, texts
from cpt_launcher.staging.dataset import OUR_KEYS, REMOTE_KEYS, Entry
from cpt_launcher.staging.records import Report
from cpt_launcher.validate.arguments import Arguments
from cpt_launcher.validate.report import Finding, Severity, of
from cpt_launcher.wording import counted

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
COUNTED = 256 << 20  # bytes of text in which lines are counted for a warning; a second or two
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
    names_none = not isinstance(columns.get("prompt"), str) and not (entry.is_text and raw is None)
    if names_none and not (_is_absent(entry) and not names.is_data(entry.given_name)):  # a folder of texts needs none
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
    yield from _per_line(document, entry)
    bad = [*_addresses(document, entry), *_sha256(document, entry)]
    bad = bad or list(_file(document, entry, run))
    yield from bad or lines(document, entry)


def _per_line(document: Document, entry: Entry) -> Iterator[Finding]:
    registry = document.value if isinstance(document.value, dict) else {}
    written = registry.get(entry.name)
    given = written.get("per_line") if isinstance(written, dict) else None
    where = document.where(entry.name, "per_line")
    if given is not None and not isinstance(given, bool):
        yield of(Problem("'per_line' must be true or false", where, '"per_line": true', "registry-entry"))
    elif given and not entry.is_text and not (entry.source and sources.is_folder(entry.source)):
        what = f"'per_line' is of text files ({texts.ENDING}), which '{entry.name}' has none of"
        yield of(Problem(what, where, "remove it", "registry-key"), "warning")


def lines(document: Document, entry: Entry) -> Iterator[Finding]:
    """Text files that LLaMA-Factory reads itself: a document of each line (datasets' text loader). Those that are
    staged are made into records.
    """
    found = [path for path in entry.files if path.suffix == texts.ENDING and shipped.is_file(path)]
    if not entry.on_storage or not found:
        return
    count = "each LINE"
    if sum(path.stat().st_size for path in found) <= COUNTED:
        count = f"each of their {sum(_line_count(path) for path in found):,} LINES"
    what = f"'{entry.name}' is {counted(len(found), 'text file')}: LLaMA-Factory makes {count} a document"
    hint = "for a document a file, stage them with an entry of your own: its source is the files, or their folder"
    yield of(Problem(what, document.where(entry.name, "file_name"), hint, "data-lines"), "warning")


def lines_of_yaml(values: Mapping[str, object]) -> Iterator[Finding]:
    """The same of a LLaMA-Factory YAML, whose data nobody stages.

    Raises:
        ConfigError: the registry in its `dataset_dir` cannot be read.
    """
    folder = values.get("dataset_dir")
    if not isinstance(folder, str) or not folder.startswith("/") or not shipped.is_file(f"{folder}/{shipped.REGISTRY}"):
        return
    document = yamlfile.read(Path(folder) / shipped.REGISTRY)
    known = document.value if isinstance(document.value, dict) else {}
    for name in str(values.get("dataset") or "").replace(" ", "").split(","):
        fields = known.get(name)
        given = fields.get("file_name") if isinstance(fields, dict) else None
        if isinstance(given, str) and isinstance(fields, dict):
            entry = Entry(name, fields, document.path, str(Path(folder) / given), on_storage=True)
            yield from lines(document, entry)


def _line_count(path: Path) -> int:
    """As LLaMA-Factory counts documents; 0 where it cannot be read."""
    try:
        report = corpus.read(path, "text")
    except OSError:
        return 0
    return report.documents + report.empty_count + report.bad_count


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
    elif entry.source is None or sources.is_folder(entry.source) or shipped.is_dir(entry.source):
        yield of(Problem("'sha256' is of a single file", where, "remove it", "registry-source"))


def _file(document: Document, entry: Entry, run: str) -> Iterator[Finding]:
    key = "source" if document.keys.get((entry.name, "source")) else "file_name"
    where = document.where(entry.name, key)
    if entry.source is None:
        return
    path = Path(entry.source)
    is_remote = "://" in entry.source
    if not is_remote and not shipped.is_dir(path) and not shipped.is_file(path):
        registry = document.value if isinstance(document.value, dict) else {}
        given = str(registry.get(entry.name, {}).get(key, ""))
        is_absolute = given.startswith(("/", "~"))
        mounted = is_absolute and not entry.on_storage and key == "file_name"
        severity: Severity = "warning" if mounted else "error"  # the cluster may have it
        hint = "" if is_absolute else "a path is relative to the registry's folder"
        hint = hint if hint or mounted else "put it there, or correct the path: it is read where the data is staged"
        hint = "put it there, or give the run an entry of your own" if entry.on_storage else hint
        yield of(Problem(f"the data of '{entry.name}' is not there: {path}", where, hint, "registry-file"), severity)
        return
    if misnamed := list(_target(document, entry, run)):
        yield from misnamed
    elif not is_remote and shipped.is_dir(path):
        if wrong := dataset.wrong_shards(path):
            yield of(Problem(wrong[0], where, wrong[1], "registry-file"))
    elif not sources.is_folder(entry.source) and (what := names.wrong_kinds([entry.staged_name])):
        hint = f'"file_name" says what it is called on the storage: NAME.jsonl, or {" ".join(names.EXTENSIONS)}'
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


@dataclass(frozen=True)
class Amount:
    """How much text was read."""

    documents: int
    size: int
    tokens: int


def check_bytes(entry: Entry, args: Arguments | None) -> tuple[list[Finding], list[str], Amount | None]:
    """Read a local dataset: findings on its records, a line of counts, and how much it is; None where it was not
    read through.
    """
    column = entry.column
    if _is_absent(entry):
        return [], [f"{entry.name}: not read, it is not there: {entry.source}"], None
    if not entry.files or column is None:
        return [], [f"{entry.name}: not read, it is not on this machine or names no text column"], None
    for path in entry.files:
        if not (entry.is_text or reading.is_readable(path)) or not shipped.is_file(path):
            return [], [f"{entry.name}: not read ({path.suffix or 'no ending'})"], None
    try:
        if entry.is_text:
            reports = [reading.text_files(entry.files, column, entry.unit)]
        else:
            reports = [reading.file(path, column) for path in entry.files]
    except OSError as error:
        return [of(Problem(f"cannot read it: {error.strerror}", str(error.filename), rule="registry-file"))], [], None
    except DataError as error:
        return [of(replace(problem, rule="data-record")) for problem in error.problems], [], None
    found = [finding for report in reports for finding in _records(report, entry)]
    documents, tokens = sum(r.documents for r in reports), sum(r.tokens for r in reports)
    size = sum(r.text_bytes for r in reports)
    whole = f"{counted(documents, 'document')}, {counted(size, 'byte')} of text"
    note = f"{entry.name}: {whole}, about {counted(tokens, 'token')} (estimated)"
    block = args.whole("cutoff_len", 0) if args else 0
    if block >= 1 and documents:
        note = f"{note}, {tokens // block:,} blocks of {block}"
    return found, [note], Amount(documents, size, tokens)


def _is_absent(entry: Entry) -> bool:
    """Whether an entry's data should be on this machine and is not."""
    local = entry.source is not None and "://" not in entry.source
    return local and not shipped.is_dir(str(entry.source)) and not shipped.is_file(str(entry.source))


def check_amount(amounts: Mapping[str, Amount | None], args: Arguments) -> list[Finding]:
    """What a config trains on against its blocks and steps, in sum: LLaMA-Factory merges the datasets before it packs
    them (0.9.3, data/loader.py). Nothing where one of them was not read.
    """
    known = [amount for amount in amounts.values() if amount is not None]
    documents = sum(amount.documents for amount in known)
    if len(known) < len(amounts) or not documents or args.whole("cutoff_len", 0) < 1:
        return []
    name = " and ".join(f"'{name}'" for name in amounts)
    whole = name if len(amounts) == 1 else f"{name} together"
    return _packing(args, whole, documents, sum(one.size for one in known), sum(one.tokens for one in known))


def _records(report: Report, entry: Entry) -> Iterator[Finding]:
    yield from (of(problem) for problem in report.problems())
    if report.empty and entry.is_text:
        what, hint = f"{counted(report.empty_count, 'file')} without text", "left out when it is staged"
        yield of(Problem(what, report.first_empty, hint, "data-record"), "warning")
    elif report.empty:
        what = f"{counted(report.empty_count, 'record')} without text, the first in line {report.empty[0]}"
        hint = "each trains one end-of-text token"
        yield of(Problem(what, report.first_empty, hint, "data-record"), "warning")


def _packing(args: Arguments, whole: str, documents: int, size: int, tokens: int) -> list[Finding]:
    """Blocks and what is lost of them. Each map batch of each process drops what does not fill a block
    (LLaMA-Factory 0.9.3, data/processor/pretrain.py): half a block on average.
    """
    where = args.where("dataset")
    block = args.whole("cutoff_len", 1)
    if size + documents < block:  # not even at a token a byte
        what = f"{whole} cannot fill one block of {block} tokens"
        return [of(Problem(what, where, "more text, or a smaller cutoff_len", "data-size"))]
    blocks = tokens // block
    step = args.whole("per_device_train_batch_size", 1) * args.whole("ray_num_workers", 1)
    if blocks < step:
        what = f"{whole}: about {blocks} blocks of {block} tokens, and a step takes {step}"
        return [of(Problem(what, where, "more text, or a smaller cutoff_len", "data-size"), "warning")]
    processes = max(1, min(args.whole("preprocessing_num_workers", 1), documents))
    batch = args.whole("preprocessing_batch_size", MAP_BATCH)
    batches = processes * math.ceil(documents / processes / batch)
    if batches > 1 and batches / 2 > LOSS * blocks:
        what = f"about {batches / 2:.0f} of {blocks} blocks are lost: {batches} map batches each drop their remainder"
        hint = "preprocessing_num_workers: 1" if processes > 1 else "a larger preprocessing_batch_size"
        return [of(Problem(what, args.where("preprocessing_num_workers"), hint, "data-loss"), "warning")]
    return []
