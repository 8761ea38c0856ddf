"""How many tokens a run trains on and holds out, as far as it can be known: counted, or estimated from its text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from cpt_launcher.errors import DataError
from cpt_launcher.plan import heldout
from cpt_launcher.plan.plan import Plan
from cpt_launcher.staging import manifest, reading
from cpt_launcher.staging.dataset import Copy
from cpt_launcher.staging.records import Report, estimated_tokens

READ = 512 << 20  # bytes of data that is not staged: so much is read, as `cpt validate --data` reads all; 5 s


@dataclass(frozen=True)
class Amount:
    """Tokens that are trained on in an epoch, and those of an evaluation (0 without one); None where not known."""

    trained: int | None
    held_out: int | None


@dataclass(frozen=True)
class _Text:
    documents: int
    tokens: int


def of(plan: Plan, tokens: int | None = None) -> Amount:
    """By the registry entries that the run names; `tokens` are all of the corpus, if the caller knows."""
    known = manifest.read(plan.layout)
    most = plan.train.get("max_samples")
    sums: list[int | None] = []
    for key in ("dataset", "eval_dataset"):
        found = [_entry(plan, fields, known, most) for fields in _entries(plan, key)]
        sums.append(None if None in found else sum(count for count in found if count is not None))
    trained, held_out = sums
    if tokens is not None:
        share = _share(plan, trained, held_out)
        trained, held_out = (int(tokens * (1 - share)), int(tokens * share)) if share else (tokens, held_out)
    return _with_val_size(Amount(trained or None, held_out), plan.train)


def _entries(plan: Plan, key: str) -> list[Mapping[str, object]]:
    names = [name.strip() for name in str(plan.train.get(key) or "").split(",") if name.strip()]
    known = {name: fields for one in plan.splits for name, fields in one.entries.items()} | {**plan.entries}
    return [known.get(name, {}) for name in names]


def _share(plan: Plan, trained: int | None, held_out: int | None) -> float:
    """How much of the corpus the run holds out; 0 where that is not known, or is another dataset."""
    if not plan.splits:
        return 0.0
    if trained and held_out:
        return held_out / (trained + held_out)
    part = str(plan.splits[0].held_out.get("split"))
    return _sliced(part, 100) / 100 if part.endswith("%:]") else 0.0


def _with_val_size(amount: Amount, train: Mapping[str, object]) -> Amount:
    """LLaMA-Factory's own way to hold something out: a share, or a number of blocks (data/data_utils.py)."""
    size, block = train.get("val_size"), train.get("cutoff_len")
    if not isinstance(size, int | float) or size <= 0 or amount.trained is None:
        return amount
    held_out = int(size * amount.trained) if size < 1 else int(size) * (block if isinstance(block, int) else 0)
    return Amount(max(0, amount.trained - held_out), held_out)


def _entry(plan: Plan, fields: Mapping[str, object], known: Mapping[str, manifest.Record], most: object) -> int | None:
    place = str(fields.get("cloud_file_name") or fields.get("file_name") or "")
    data = (*plan.copies, *plan.present)
    copies = [copy for copy in data if copy.column and place in (copy.place, str((copy.shard_of or "  ")[1]))]
    unread = [copy for copy in copies if _record(plan, copy, known) is None]
    files = [Path(name) for copy in unread for name in copy.files]
    if not copies or not all(path.is_file() for path in files):
        return None
    size = sum(path.stat().st_size for path in files)
    if size > READ:
        return _rough(size, more=len(unread) < len(copies), most=most)
    documents = tokens = 0
    for copy in copies:
        text = _counted(_record(plan, copy, known)) or _read(copy)
        if text is None:
            return None
        documents, tokens = documents + text.documents, tokens + text.tokens
    used = _sliced(str(fields.get("split", "")), documents)
    used = min(used, most) if isinstance(most, int) and most > 0 else used
    return int(tokens * used / documents) if documents else 0


def _rough(size: int, *, more: bool, most: object) -> int | None:
    """By the size of what is too large to be read for an estimate; what is held out of it is too little to matter."""
    return None if more or isinstance(most, int) else estimated_tokens(size, 0)


def _record(plan: Plan, copy: Copy, known: Mapping[str, manifest.Record]) -> manifest.Record | None:
    record = known.get(copy.place.removeprefix(f"{plan.layout.storage}/"))
    return record if record is not None and record.text_bytes is not None else None


def _counted(record: manifest.Record | None) -> _Text | None:
    """What staging saw: tokens by a tokenizer where one was given."""
    if record is None:
        return None
    seen = Report(Path(record.source), record.documents or 0, record.text_bytes or 0)
    return _Text(seen.documents, record.tokens if record.tokens is not None else seen.tokens)


def _read(copy: Copy) -> _Text | None:
    """What `cpt validate --data` sees in a file that is not staged yet; None where it cannot be read here."""
    path = Path(copy.source)
    if not copy.text and not reading.is_readable(path):
        return None
    try:
        if copy.text:
            seen = reading.text_files([Path(name) for name in copy.files], str(copy.column), copy.text)
        else:
            seen = reading.file(path, str(copy.column))
    except (OSError, DataError):
        return None
    return _Text(seen.documents, seen.tokens)


def _sliced(split: str, documents: int) -> int:
    """Documents that a split takes of so many."""
    found = heldout.spans(split, documents)
    return documents if found is None else sum(max(0, end - begin) for begin, end in found)
