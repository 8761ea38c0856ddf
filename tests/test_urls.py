from __future__ import annotations

import time

import pytest

from cpt_launcher import urls


@pytest.mark.parametrize(
    ("text", "seen", "secrets"),
    [
        ("https://u:p@h/x.gz?a=b and s3://b/k", "https://h/x.gz and s3://b/k", ["p"]),
        ("http://user:p@ss@host/x", "http://host/x", ["p@ss"]),
        ("http://user:p/ss@host/x", "http://host/x", ["p/ss"]),
        ("http://user:p#ss@host/x", "http://host/x", ["p#ss"]),
        ("http://user:p?ss@host/x", "http://host/x", ["p?ss"]),
        ("http://user:p ss@host/x", "http://host/x", ["p ss"]),
        ("http://user:p@s s@host/x", "http://host/x", ["p@s s"]),
        ("http://user:pa[s@host/x", "http://host/x", ["pa[s"]),
        ("http://:tok@host/x", "http://host/x", ["tok"]),
        ("cannot read 'http://user:p ss@host/x' now", "cannot read 'http://host/x' now", ["p ss"]),
        ("failed: https://u:p@h/x: ask bob@x.org", "failed: https://h/x: ask bob@x.org", ["p"]),
        ("(https://h/a)?sig=q)", "(https://h/a))", ["q"]),
        ("'https://h/a?x='b'&sig=q'", "'https://h/a'", ["q"]),
        ("https://h/a?v=1&X-Amz-Signature=0a1b", "https://h/a", ["0a1b"]),
        ("https://h/a?X-Goog-Signature=0a1b#x", "https://h/a", ["0a1b"]),
        ("https://h/a#access_token=x", "https://h/a", ["x"]),
        ("https://h/a;token=x", "https://h/a", ["x"]),
        ("postgres+psycopg://u:pw@db/x?sslmode=1", "postgres+psycopg://db/x", ["pw"]),
        ("https://somebody@h/a", "https://h/a", []),
        ("hf://datasets/u/r@main/f.jsonl", "hf://datasets/u/r@main/f.jsonl", []),
        ("https://h:80/a.jsonl, for b@c.org", "https://h:80/a.jsonl, for b@c.org", []),
        ("https://h:80: refused; ask b@c.org", "https://h:80: refused; ask b@c.org", []),
        ("http://[::1]:80/x and b@c.org", "http://[::1]:80/x and b@c.org", []),
        ("https://h/a?download=true", "https://h/a", []),
        ("git@github.com:a/b", "git@github.com:a/b", []),
        ("http://[", "http://[", []),
    ],
)
def test_what_is_seen_of_a_url_and_what_is_secret_in_it(text: str, seen: str, secrets: list[str]) -> None:
    assert urls.shown(text) == seen
    assert [value for _, value in urls.secrets(text)] == secrets


@pytest.mark.parametrize("text", ["a" * 10**6, "a://b:c " * 10**5, "a://b:c@" * 10**5, "http://u:" + "x " * 10**5])
def test_a_long_text_takes_no_longer_than_it_must(text: str) -> None:
    began = time.monotonic()
    urls.shown(text)
    assert time.monotonic() - began < 10
