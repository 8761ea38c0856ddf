from pathlib import Path

import pytest

from cpt_launcher import corpus


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


def test_bad_records_are_counted_and_the_first_shown(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "ok"}\n' + '{"body": "x", "id": 1}\n' * 7)
    report = corpus.read(path, "text")
    assert (report.documents, report.bad_count) == (1, 7)
    assert [problem.where for problem in report.problems()] == [*(f"{path}:{n}:1" for n in range(2, 7)), str(path)]
    assert report.problems()[0].what == "no column 'text', but body, id"


def test_a_record_without_end_does_not_fill_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpus, "MAX_RECORD", 1 << 20)
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "' + "x" * (1 << 21))
    [problem] = corpus.read(path, "text").problems()
    assert problem.what == "a record of over 1 MiB; the rest was not read"
