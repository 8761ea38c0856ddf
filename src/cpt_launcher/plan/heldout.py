"""What is held out of a dataset: a seeded random sample of its documents, or the last ones, as slices of a `split`."""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from cpt_launcher.config.launcher import Evaluation
from cpt_launcher.errors import ConfigError, Problem
from cpt_launcher.layout import Layout
from cpt_launcher.staging.dataset import Copy, Entry
from cpt_launcher.staging.manifest import Record
from cpt_launcher.wording import counted as nouns

# `datasets` opens the corpus once for each slice, 5 to 10 ms, and again in each process of a map (docs/heldout.md).
MOST_STRETCHES = 500
SEED = 42  # LLaMA-Factory's default
_SLICE = re.compile(r"[^\[\]+]+(?:\[(-?\d+%?)?:(-?\d+%?)?\])?$")

Fields = Mapping[str, object]
Span = tuple[int, int]  # rows from the first to before the second


@dataclass(frozen=True)
class Split:
    """One dataset as two: registry names and fields of what is trained on and of what is held out.

    LLaMA-Factory's own `val_size` splits packed blocks, so that the halves of a document can be on both sides
    (data/loader.py, `get_dataset`). Slices of the `split` are of documents (`datasets`, Slice splits). `drawn`: the
    slices are those of the run; else they are only as large, since the data is not staged and nobody counted it yet.
    """

    name: str
    train: Fields
    held_out: Fields
    mark: str
    said: str
    drawn: bool = True

    @property
    def names(self) -> tuple[str, str]:
        return f"{self.name}@but-{self.mark}", f"{self.name}@{self.mark}"

    @property
    def entries(self) -> dict[str, Fields]:
        return dict(zip(self.names, (self.train, self.held_out), strict=True))

    def __str__(self) -> str:
        return self.said


@dataclass(frozen=True)
class Counted:
    """A dataset's documents as `datasets` numbers them, and what tells its bytes from others."""

    documents: int
    digest: str = ""


def split(name: str, fields: Fields, wanted: Evaluation, there: Counted | None, seed: int) -> Split | None:
    """Hold documents out; None where datasets of their own are, or where the entry cannot be sliced.

    Args:
        there: None while nobody counted the documents.

    Raises:
        ConfigError: all of them would be held out.
    """
    whole = fields.get("split", "train")
    if wanted.datasets or "cloud_file_name" in fields or not isinstance(whole, str) or "[" in whole:
        return None
    part = f"{wanted.percent}pc" if wanted.percent else str(wanted.documents)
    size = f"{wanted.percent}%" if wanted.percent else f"{wanted.documents:,} documents"
    last = _last(name, fields, whole, wanted, f"last-{part}", f"holds out the last {size} of {name}")
    if wanted.tail:
        return last
    if there is None:
        said = f"holds out {size} of {name} at random (seed {seed}), drawn when the data is staged"
        return replace(last, mark=f"random-{part}-seed-{seed}", said=said, drawn=False)
    documents = there.documents
    held = max(1, round(documents * wanted.percent / 100)) if wanted.percent else wanted.documents
    if held >= documents:
        raise ConfigError(_nothing_left(name, held, documents))
    held_out = sample(documents, held, f"{seed} {name}")
    how = "" if len(held_out) == held else f" in {len(held_out)} stretches"
    return Split(
        name,
        {**fields, "split": _slices(whole, _between(held_out))},
        {**_once(fields), "split": _slices(whole, held_out)},
        f"random-{part}-of-{documents}-seed-{seed}-{there.digest}",
        f"holds out {held:,} of the {documents:,} documents of {name}, at random{how} (seed {seed})",
    )


def _nothing_left(name: str, held: int, documents: int) -> Problem:
    """That all documents of an entry would be held out, and what to do: of a single one no part can be held out."""
    has = f"'{name}' has {nouns(documents, 'document')}"
    what = f"holding out {nouns(held, 'document')} leaves nothing to train on: {has}"
    hint = f"hold fewer out: eval: {{documents: {max(1, documents // 100)}}}"
    if documents < 2:
        hint = "eval: none, or held-out data of its own: eval: {dataset: my_test}; or split the document into several"
    return Problem(what, "eval", hint, "evaluation")


def _last(name: str, fields: Fields, whole: str, wanted: Evaluation, mark: str, said: str) -> Split:
    cut = f"{100 - wanted.percent}%" if wanted.percent else f"-{wanted.documents}"
    train, held_out = f"{whole}[:{cut}]", f"{whole}[{cut}:]"
    return Split(name, {**fields, "split": train}, {**_once(fields), "split": held_out}, mark, said)


def _once(fields: Fields) -> Fields:
    """Without `num_samples`, by which LLaMA-Factory repeats documents where there are fewer."""
    return {key: value for key, value in fields.items() if key != "num_samples"}


def sample(documents: int, count: int, seed: str) -> list[Span]:
    """`count` of them at random, in order: each alone, and above `MOST_STRETCHES` in so many runs of about one length
    at random places. Only `random.random` is asked, which is the same in every Python for ever.
    """
    runs = min(count, MOST_STRETCHES)
    lengths = [count // runs + (number < count % runs) for number in range(runs)]
    # A run takes one place, like each document that is not held out; so none overlap, and every place is as likely.
    chance, chosen = random.Random(seed), set[int]()
    places = documents - count + runs
    for top in range(places - runs, places):  # Floyd's sampling
        drawn = int(chance.random() * (top + 1))
        chosen.add(top if drawn in chosen else drawn)
    spans: list[Span] = []
    moved = 0
    for place, length in zip(sorted(chosen), lengths, strict=True):
        begin = place + moved
        spans.append((begin, begin + length))
        moved += length - 1
    return spans


def _between(spans: Sequence[Span]) -> list[tuple[int, int | None]]:
    """The rest, to the very end: what was not counted would be trained on."""
    begins, ends = [0, *(end for _, end in spans)], [*(begin for begin, _ in spans), None]
    return [(begin, end) for begin, end in zip(begins, ends, strict=True) if begin != end]


def _slices(whole: str, spans: Sequence[tuple[int, int | None]]) -> str:
    return "+".join(f"{whole}[{begin}:{'' if end is None else end}]" for begin, end in spans)


def spans(text: object, documents: int) -> list[Span] | None:
    """The rows that a `split` takes of so many (https://huggingface.co/docs/datasets/loading, Slice splits); None where
    it is no sum of slices.
    """
    found = [_SLICE.match(part.strip()) for part in str(text or "train").split("+")]
    bounds = [[_bound(bound, documents) for bound in one.groups()] for one in found if one]
    return None if None in found else [(first or 0, documents if last is None else last) for first, last in bounds]


def _bound(text: str | None, documents: int) -> int | None:
    if text is None:
        return None
    number = round(documents * int(text[:-1]) / 100) if text.endswith("%") else int(text)
    return min(documents, max(0, number + documents if number < 0 else number))


def counted(record: Record, name: str) -> int | None:
    """The documents of a staged file as `datasets` numbers them: those without text are there, blank lines of JSON and
    CSV are not. None where staging did not count them so: a line of a `.txt` may be blank.
    """
    if record.documents is None or name.endswith(".txt") or (record.skipped and not name.endswith(".jsonl")):
        return None
    return record.documents + record.empty if record.rows is None else record.rows


def count(entry: Entry, copies: Sequence[Copy], layout: Layout, known: Mapping[str, Record]) -> Counted | None:
    """The documents of an entry, None until its data is on the storage as the manifest says.

    Raises:
        ConfigError: nobody counts them.
    """
    prefix = entry.staged_name.rstrip("/") if entry.source is not None else ""
    found = {name: record for name, record in known.items() if prefix and f"{name}/".startswith(f"{prefix}/")}
    named = {copy.target.relative_to(layout.storage).as_posix() for copy in copies if not copy.is_folder}
    whole = bool(found) and (set(found) == named or any(copy.is_folder for copy in copies))
    if not whole or not all(record.matches(layout.storage / name) for name, record in found.items()):
        if copies and not any(copy.there for copy in copies):
            return None
        raise _uncounted(entry)
    counts = [counted(record, name) for name, record in found.items()]
    if None in counts:
        raise _uncounted(entry)
    hashes = "".join(f"{name} {record.sha256}\n" for name, record in sorted(found.items()))
    return Counted(sum(each for each in counts if each is not None), hashlib.sha256(hashes.encode()).hexdigest()[:6])


def _uncounted(entry: Entry) -> ConfigError:
    what = f"nothing can be drawn at random from '{entry.name}': cpt did not stage and count its documents"
    hint = "hold the last ones out, eval: {share: 0.01, tail: true}, or another dataset, eval: {dataset: my_test}"
    return ConfigError(Problem(what, str(entry.registry), hint, "evaluation"))
