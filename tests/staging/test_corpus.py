import time
from pathlib import Path

import pytest

from cpt_launcher.staging import corpus


@pytest.mark.parametrize(
    ("name", "content", "documents", "size"),
    [
        ("a.jsonl", '{"text": "one"}\n{"text": "zwölf"}\n', 2, 9),
        ("a.json", '[{"text": "one"}, {"text": "two"}]', 2, 6),
        ("a.json", '{"text": "one"}\n{"text": "two"}', 2, 6),
        ("a.jsonl", '\ufeff{"text": "one"}\r\n\r\n{"text": "two"}', 2, 6),
        ("a.txt", "first line\n\nsecond\n", 2, 16),
        ("a.csv", 'id,text\n1,"a, b"\n2,c\n', 2, 5),
    ],
)
def test_formats(tmp_path: Path, name: str, content: str, documents: int, size: int) -> None:
    path = tmp_path / name
    path.write_bytes(content.encode())
    report = corpus.read(path, "text")
    assert (report.documents, report.text_bytes, report.problems()) == (documents, size, [])


@pytest.mark.parametrize("kind", ["parquet", "stream.arrow", "file.arrow"])
def test_tables(tmp_path: Path, kind: str) -> None:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    path = tmp_path / f"a.{kind}"
    table = pa.table({"text": ["one", None, "three", ""], "id": [1, 2, 3, 4]})
    if kind == "parquet":
        pq.write_table(table, path)
    else:
        new = pa.ipc.new_stream if kind.startswith("stream") else pa.ipc.new_file
        with new(str(path), table.schema) as writer:
            writer.write_table(table)
    report = corpus.read(path, "text")
    assert (report.documents, report.text_bytes, report.empty, report.problems()) == (2, 8, [2, 4], [])
    [problem] = corpus.read(path, "body").problems()
    assert problem.what == "no column 'body', but text, id"
    [problem, _] = corpus.read(path, "id").problems()[:2]
    assert problem.what == "'id' is int, not text"
    path.write_bytes(path.read_bytes()[:50])
    assert corpus.read(path, "text").problems()[0].what.startswith(f"not {path.suffix[1:]}")


def test_bad_records_are_counted_and_the_first_shown(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "ok"}\n' + '{"body": "x", "id": 1}\n' * 7)
    report = corpus.read(path, "text")
    assert (report.documents, report.bad_count) == (1, 7)
    assert [problem.where for problem in report.problems()] == [*(f"{path}:{n}:1" for n in range(2, 7)), f"{path}:6:2"]
    assert report.problems()[-1].what == "2 more bad records"
    assert report.problems()[0].what == "no column 'text', but body, id"


def test_a_record_without_end_does_not_fill_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpus, "MAX_RECORD", 1 << 20)
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "' + "x" * (1 << 21))
    [problem] = corpus.read(path, "text").problems()
    assert problem.what == "a record of over 1 MiB; the rest was not read"


@pytest.mark.parametrize("blank", [b"\n", b" \n", b"\r\n"])
def test_blank_lines_are_passed_over_quickly(blank: bytes) -> None:
    checker, chunk = corpus.Checker(Path("a.jsonl"), "text"), blank * ((4 << 20) // len(blank))
    began = time.process_time()
    for _ in range(10):
        checker.feed(chunk)
    assert time.process_time() - began < 2  # 40 MiB; a step of Python for each took four
    checker.feed(b'{"text": "one"}\n{"body": "two"}\n')
    line = 10 * (len(chunk) // len(blank)) + 2
    assert (checker.report.documents, checker.report.bad) == (1, [(line, "no column 'text', but body")])


def test_only_bad_lines_are_left_out() -> None:
    rejected: list[tuple[int, bytes]] = []
    checker = corpus.Checker(Path("a"), "text", reject=lambda line, _, raw: rejected.append((line, raw)))
    kept = checker.feed(b'\n \n{"text": "a"}\nbad\n\n  worse\n{"text": ') + checker.feed(b'"b"}\n\nlast')
    assert kept + checker.close() == b'\n \n{"text": "a"}\n\n{"text": "b"}\n\n'
    assert rejected == [(4, b"bad"), (6, b"  worse"), (9, b"last")]


@pytest.mark.parametrize(("content", "leaves_some"), [(b'{"text": "a"}\n\xff\n', True), (b"\xff\n", False)])
def test_leaving_out_is_advised_where_something_is_left(tmp_path: Path, content: bytes, leaves_some: bool) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(content)
    (found,) = corpus.read(path, "text").problems()
    assert ("cpt stage-data CONFIG --on-bad-record skip" in found.hint) is leaves_some
