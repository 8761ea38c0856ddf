"""One file to the storage in one pass: read, decompressed, checked, hashed and written at once."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO

from cpt_launcher import disk, urls
from cpt_launcher.config import names
from cpt_launcher.errors import DataError, Problem
from cpt_launcher.staging import corpus, reading, sources, texts
from cpt_launcher.staging.dataset import Copy
from cpt_launcher.staging.records import Report
from cpt_launcher.staging.sources import Version

SPACE_STEP = 1 << 30  # bytes after which free space is asked for again


@dataclass(frozen=True)
class How:
    """What to do with bad records (leave them out, to a file), and how to count tokens."""

    quarantine: Path | None = None
    count: Callable[[str], int] | None = None


@dataclass(frozen=True)
class Done:
    """The new content, still without the target's name: its size, hash and what was seen in it."""

    size: int
    sha256: str
    report: Report | None


@contextlib.contextmanager
def transferred(
    copy: Copy, version: Version, how: How, progress: Callable[[int], None]
) -> Iterator[tuple[disk.Part, Done]]:
    """The file's new content beside its target, checked; the caller publishes or discards it.

    An interrupted copy of the same version of a remote file resumes where it was. Bad records fail the copy, or with
    a quarantine file are left out and written there.

    Raises:
        DataError: the source fails, ends early, changes meanwhile, or holds bad records.
        StorageError: the target cannot be written.
    """
    as_it_is = not copy.is_compressed and how.quarantine is None and not copy.text
    stamp = version.stamp if copy.is_remote and as_it_is else None
    with disk.part_of(copy.target, stamp) as part:
        try:
            done = _fill(part, copy, version, how, progress)
        except BaseException as error:
            if stamp is None or (isinstance(error, DataError) and not isinstance(error, _BrokenOffError)):
                part.discard()
            raise
        yield part, done


class _BrokenOffError(DataError):
    """What came so far is good, and the next try resumes from there."""


def _fill(part: disk.Part, copy: Copy, version: Version, how: How, progress: Callable[[int], None]) -> Done:
    quarantine = how.quarantine
    with contextlib.ExitStack() as stack:
        reject = stack.enter_context(_quarantined(quarantine)) if quarantine else None
        flow = _Flow(part, copy, reject, how.count)
        part.file.seek(0)
        while chunk := part.file.read(corpus.CHUNK):  # what an interrupted copy left
            flow.take(chunk, write=False)
        for file in version.files:
            _pour(file, copy, flow, progress, resumable=part.stamp is not None)
        flow.end()
    _refuse_other_content(copy, flow.source_digest.hexdigest())
    with disk.storage_errors(copy.target):
        part.file.flush()
    report = flow.report()
    if report is not None and report.problems() and (quarantine is None or not report.documents):
        raise DataError(*(_placed(problem, copy, report) for problem in report.problems()))
    return Done(flow.written, flow.digest.hexdigest(), report)


def _pour(file: Version, copy: Copy, flow: _Flow, progress: Callable[[int], None], *, resumable: bool) -> None:
    """One file of the source, from where an interrupted copy broke off (which only one of a single file does)."""
    begun = flow.received if copy.parts else 0
    flow.begin(file.url)
    look = _bounded(copy, file)
    with sources.open_at(file.url, flow.received - begun) as stream:
        while chunk := _read(stream, file.url, resumable=resumable):
            flow.take(chunk, write=True)
            look(flow.received - begun)
            progress(flow.received)
    flow.end_file()
    came, shown = flow.received - begun, urls.shown(file.url)
    if file.size is not None and not _is_packed(file.url) and came != file.size:
        what = f"the source ended after {came:,} of {file.size:,} bytes"
        raise _BrokenOffError(Problem(what, shown, "the same command resumes from there"))
    if sources.version(file.url).stamp != file.stamp:
        raise DataError(Problem("the source changed while it was read", shown, "start again"))


def _placed(problem: Problem, copy: Copy, report: Report) -> Problem:
    """A problem of a record with the place that the source's owner knows it by."""
    where = problem.where.replace(str(report.path), copy.shown) if not copy.text else problem.where
    where = copy.shown if problem.rule == "data-empty" else where
    for url in copy.files if copy.is_remote else ():
        where = where.replace(str(Path(urls.shown(url))), urls.shown(url))
    return replace(problem, where=where)


def _is_packed(url: str) -> bool:
    return sources.path_of(url).endswith(names.COMPRESSED)


def _bounded(copy: Copy, file: Version) -> Callable[[int], None]:
    """Looks at how many bytes of a file have come so far, where it may hold more than its size says.

    The callable raises:
        DataError: a compressed source unpacks to more than text does.
        StorageError: the storage is filling up.
    """
    packed = file.size if _is_packed(file.url) else None
    asked = 0

    def look(received: int) -> None:
        nonlocal asked
        if packed is not None:
            reading.refuse_bomb(packed, received, urls.shown(file.url))
        if received - asked >= SPACE_STEP:
            asked = received
            disk.require_space(copy.target.parent, SPACE_STEP)

    return look


def _refuse_other_content(copy: Copy, found: str) -> None:
    if copy.sha256 is not None and found != copy.sha256:
        what = f"this is not the file that the entry asks for: its sha256 is {found}, not {copy.sha256}"
        hint = 'nothing was staged: find out who changed it, and only then the entry\'s "sha256"'
        raise DataError(Problem(what, copy.shown, hint, "data-changed"))


class _Flow:
    """Checks chunks and, one step behind in a thread of its own, hashes and writes them."""

    def __init__(
        self,
        part: disk.Part,
        copy: Copy,
        reject: Callable[[int, str, bytes], None] | None,
        count: Callable[[str], int] | None,
    ) -> None:
        self.digest = hashlib.sha256()
        # Of all that came, which is more than what is kept where bad records are left out.
        self.source_digest = self.digest if reject is None and not copy.text else hashlib.sha256()
        self.received = self.written = 0
        self._shown = copy.shown
        self._part, self._copy, self._reject, self._count = part, copy, reject, count
        self._checker: corpus.Checker | None = None
        self._at_start = True
        self._maker: texts.Maker | None = None
        if copy.text and copy.column:
            report = Report(Path(copy.shown), count=count)
            self._maker = texts.Maker(report, copy.column, copy.text, reject)
        self._pool = ThreadPoolExecutor(max_workers=1)
        self._pending: Future[None] | None = None

    def begin(self, url: str) -> None:
        """The next file of the source."""
        self._shown = urls.shown(url)
        if self._maker is not None:
            self._at_start = True
            self._maker.begin(Path(self._shown))

    def take(self, chunk: bytes, *, write: bool) -> None:
        """The next bytes of the source; `write` is off for those that are in the part already."""
        if self._at_start:
            self._look_at(chunk)
        self.received += len(chunk)
        if self.source_digest is not self.digest and self._copy.sha256 is not None:
            self.source_digest.update(chunk)
        self._hand_over(self._kept(chunk), write=write)

    def _look_at(self, start: bytes) -> None:
        """What a file's first bytes say about the rest."""
        self._at_start = False
        suffix = texts.ENDING if self._maker else self._copy.target.suffix
        if wrong := corpus.wrong_start(suffix, start):
            raise DataError(Problem(wrong, self._shown, "is it the right file?", "data-record"))
        if self._maker is None:
            self._checker = self._new_checker(start[:1024])

    def _kept(self, chunk: bytes) -> bytes:
        """What is passed on of the next bytes."""
        try:
            if self._maker is not None:
                return self._maker.feed(chunk)
            passed = self._checker.feed(chunk) if self._checker else chunk
        except texts.TooLongError:
            report = self._maker.report if self._maker else self._checker.report if self._checker else None
            assert report is not None
            raise DataError(*(_placed(problem, self._copy, report) for problem in report.problems())) from None
        return passed if self._reject else chunk

    def end_file(self) -> None:
        """A file of the source is at its end."""
        if self._maker is not None:
            self._hand_over(self._maker.end(), write=True)

    def end(self) -> None:
        """The source is at its end: nothing is pending after this."""
        rest = self._checker.close() if self._checker else b""
        self._hand_over(rest if self._reject else b"", write=True)
        self._wait()
        self._pool.shutdown()

    def report(self) -> Report | None:
        """What was seen in it; files that are not line-wise are read once more for that, from the part."""
        if self._maker is not None:
            return self._maker.report
        suffix = self._copy.target.suffix
        if self._copy.column is None or not corpus.is_readable(suffix):
            return None
        if self._checker is None:
            return corpus.read(self._part.path, self._copy.column, suffix, self._count)
        return self._checker.report

    def _new_checker(self, start: bytes) -> corpus.Checker | None:
        suffix, column = self._copy.target.suffix, self._copy.column
        if column is None or not corpus.is_line_wise(suffix, start):
            return None
        return corpus.Checker(Path(self._copy.shown), column, reject=self._reject, count=self._count)

    def _hand_over(self, data: bytes, *, write: bool) -> None:
        self._wait()
        self.written += len(data)
        self._pending = self._pool.submit(self._keep, data, write)

    def _keep(self, data: bytes, write: bool) -> None:
        self.digest.update(data)
        if write:
            with disk.storage_errors(self._copy.target):
                self._part.file.write(data)

    def _wait(self) -> None:
        if self._pending is not None:
            self._pending.result()


@contextlib.contextmanager
def _quarantined(path: Path) -> Iterator[Callable[[int, str, bytes], None]]:
    """A file for what was left out: line number, reason and text of each record."""
    if path.exists():
        disk.set_aside(path)
    with contextlib.ExitStack() as stack:
        opened: list[IO[bytes]] = []

        def reject(line: int, reason: str, raw: bytes) -> None:
            if not opened:
                opened.append(stack.enter_context(disk.append_to(path)))
            record = {"line": line, "reason": reason, "raw": raw.decode("utf-8", "replace")}
            opened[0].write(json.dumps(record, ensure_ascii=False).encode() + b"\n")

        yield reject


def _read(stream: IO[bytes], url: str, *, resumable: bool) -> bytes:
    try:
        return stream.read(corpus.CHUNK)
    except sources.failures() as error:
        problem = sources.unreadable(url, error).problems[0]
        hint = "the same command resumes from there" if resumable else problem.hint
        raise _BrokenOffError(Problem(problem.what, problem.where, hint)) from None
