import json
from pathlib import Path

import pytest
import yaml

from cpt_launcher.config import document as yamlfile
from cpt_launcher.errors import ConfigError

HERE = Path("x.yaml")


def problems(text: str) -> list[tuple[str, str]]:
    with pytest.raises(ConfigError) as caught:
        yamlfile.parse(text, HERE)
    return [(problem.what, problem.where) for problem in caught.value.problems]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("5E5", 5e5),
        ("-2e+3", -2e3),
        ("1.5e-4", 1.5e-4),
        ("1_0e2", 1000.0),
        ("'1e-4'", "1e-4"),
        ("e4", "e4"),
    ],
)
def test_exponents_are_numbers(text: str, value: object) -> None:
    assert yamlfile.parse(f"a: {text}", HERE).value == {"a": value}


def test_marks_point_at_keys_and_values() -> None:
    document = yamlfile.parse("a: 1\ntrain:\n  b: [1, 2]\n", HERE)
    assert document.where("train", "b") == "x.yaml:3:3"
    assert document.where("train", "absent") == "x.yaml:2:1"
    assert document.where("absent") == "x.yaml"
    assert document.values["train", "b", 1] == yamlfile.Mark(3, 10)


def test_a_duplicate_key_is_reported_with_both_lines() -> None:
    assert problems("a: 1\nb: 2\na: 3\n") == [("key 'a' stands here and in line 1", "x.yaml:3:1")]


def test_a_merged_key_may_be_overridden() -> None:
    text = "base: &base {a: 1, b: 2}\nown:\n  <<: *base\n  a: 3\n"
    assert yamlfile.parse(text, HERE).value == {"base": {"a": 1, "b": 2}, "own": {"a": 3, "b": 2}}


def test_merges_are_those_of_pyyaml() -> None:
    text = "a: &a {x: 1, y: 1}\nb: &b {<<: *a, y: 2, z: 2}\nc: {z: 3, <<: [*a, *b]}\nd: {<<: *b, <<: *a}\n"
    assert yamlfile.parse(text, HERE).value == yaml.safe_load(text)


@pytest.mark.parametrize(
    ("text", "what", "where"),
    [
        ("a: [1, 2\n", "not valid YAML", "x.yaml:2:1"),
        ("a:\n\tb: 1\n", "not valid YAML: a tab", "x.yaml:2:1"),
        ("{1: 2}: 3", "a key must be plain text", "x.yaml:1:1"),
        ("a: 0x" + "f" * 4000, "a number of that size is none", "x.yaml:1:4"),
        ("a: 2024-13-45", "month must be in 1..12", "x.yaml:1:4"),
        ("a: " + "[" * 200_000, "nested too deeply", "x.yaml:1:103"),
        ("a: &a [*a]", "nested too deeply", "x.yaml:1:4"),
        ("\x00", "not valid YAML", "x.yaml"),
        ("a: !!bool x", "'x' is no bool", "x.yaml:1:4"),
        ("a: !!timestamp x", "'x' is no timestamp", "x.yaml:1:4"),
        ('a: !!int ""', "'' is no int", "x.yaml:1:4"),
        ("a: {<<: 1}", "`<<` takes a mapping", "x.yaml:1:9"),
    ],
)
def test_bad_yaml_says_where(text: str, what: str, where: str) -> None:
    [(said, place)] = problems(text)
    assert what in said
    assert place == where


def test_expanded_anchors_are_bounded() -> None:
    laughs = "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 9))
    [(said, _)] = problems(laughs)
    assert "too many values" in said


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b"x" * 1_000_001])
def test_no_text_file(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "binary.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"not UTF-8|larger than"):
        yamlfile.read(path)


@pytest.mark.parametrize(
    "value", ["no", "1e-5", 1e-05, "a: b", "x\ny", "\u2028", "#c", None, True, [1, "2"], {"k": "v"}]
)
def test_dump_reads_back_as_the_same_value(value: object) -> None:
    # PyYAML itself dumps the text 1e-5 bare and reads it back as text.
    assert yaml.safe_load(yamlfile.dump({"key": value})) == {"key": value}


def test_json_is_read_as_json(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('{\n\t"a": {\n\t\t"b": 1\n\t}\n}')
    document = yamlfile.read(path)
    assert document.value == {"a": {"b": 1}}
    assert document.where("a", "b") == f"{path}:3:3"
    for text, place in (('{"a": 1,\n}', "2:1"), ('{"a": 01}', "1:8"), ("{a: 1}", "1:2"), ('{"a": /* */ 1}', "1:7")):
        path.write_text(text)
        with pytest.raises(ConfigError, match="not valid JSON") as caught:
            yamlfile.read(path)
        assert caught.value.problems[0].where == f"{path}:{place}", text


@pytest.mark.parametrize(
    "text", ["\U0001f600", "\x7f", "\x85", "\u2028", "\ufeff", "\x01", "no", "1e-4", "a: b", '/\\"\t']
)
def test_any_text_of_json(tmp_path: Path, text: str) -> None:
    path = tmp_path / "a.json"
    value = {text: [text, {"b": text}], "c": 1e-4}
    for escaped in (True, False):
        path.write_text(json.dumps(value, ensure_ascii=escaped, indent=1))
        document = yamlfile.read(path)
        assert document.value == value
        assert document.where("c") == f"{path}:8:2"
        assert document.where(text, 1, "b") == f"{path}:5:4"


def test_places_in_json_are_those_in_yaml(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    text = '{"a": {}, "b": [], "c": [[1, {"d": "\\u0041,}]"}], -1.5e3, true, null], "": {"x":\n {"y" : 1}}}'
    path.write_text(text)
    found, expected = yamlfile.read(path), yamlfile.parse(text, path)
    assert (found.value, found.keys, found.values) == (expected.value, expected.keys, expected.values)


@pytest.mark.parametrize(
    ("text", "what", "place"),
    [
        ('{"a": 1,\n "a": 2}', "key 'a' stands here and in line 1", "2:2"),
        ('{"a": "\\ud800"}', "half of a character", "1:7"),
        ('{"\\ud800": 1}', "half of a character", "1:2"),
        ('{"a": NaN}', "not valid JSON: NaN", "1:7"),
        ('{"a": ' + "1" * 1000 + "}", "a number of that size is none", "1:7"),
        ('{"a": ' + "1" * 5000 + "}", "Exceeds the limit|of that size", "1:7"),
        ('{"a": ' + "[" * 100_000 + "]" * 100_000 + "}", "nested too deeply", "1:106"),
        ("[" * 300 + "]" * 300, "nested too deeply", "1:101"),
        ("[" + "1," * 60_000 + "1]", "too many values", "1:100000"),
    ],
)
def test_bad_json_says_where(tmp_path: Path, text: str, what: str, place: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match=what) as caught:
        yamlfile.read(path)
    assert [problem.where for problem in caught.value.problems] == [f"{path}:{place}"]
