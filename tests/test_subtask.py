"""A process beside a run: its result, its failure, and no secret in either."""

from __future__ import annotations

import os
import sys

import pytest

from cpt_launcher import subtask
from cpt_launcher.errors import DataError, TrainingError
from cpt_launcher.staging import dataset

TOKEN = "hf_averysecretvalue"


def run(code: str, **more: object) -> dict[str, object]:
    environ = {**os.environ, "HF_TOKEN": TOKEN, "MINE": "not called like one"}
    return subtask.run((sys.executable, "-c", code), environ, "the work", "/some/where", "look", **more)  # type: ignore[arg-type]


def test_the_last_result_line_counts_and_stdin_is_given() -> None:
    code = "import sys; print('noise'); print('cpt-result {\"a\": 1}'); print('cpt-result', sys.stdin.read())"
    assert run(code, given='{"a": 2}') == {"a": 2}
    assert run("print('noise')") == {}


def test_a_known_failure_is_explained_and_secrets_are_replaced() -> None:
    with pytest.raises(TrainingError) as failure:
        run("import os; raise RuntimeError(os.environ['HF_TOKEN'])")
    problem = failure.value.problems[0]
    assert problem.what == "the work failed: RuntimeError: <HF_TOKEN>"
    assert (problem.where, problem.hint) == ("/some/where", "look")


def test_its_output_is_seen_redacted() -> None:
    seen: list[str] = []
    run("import os; print('one\\rtwo', os.environ['HF_TOKEN'])", seen=seen.append)
    assert seen == ["one", "two <HF_TOKEN>"]


def test_values_that_the_run_has_named_are_replaced_too() -> None:
    with pytest.raises(TrainingError, match="the work failed: RuntimeError: <MINE>"):
        run("import os; raise RuntimeError(os.environ['MINE'])", secrets=("MINE",))


def test_without_an_exception_the_last_words_are_said_in_the_error_asked_for() -> None:
    with pytest.raises(DataError, match="the work failed: no such model") as failure:
        run("import sys; print('no such  model'); sys.exit(3)", error=DataError)
    assert TOKEN not in str(failure.value)


def test_a_secret_goes_only_where_it_may_be_needed() -> None:
    environ = {
        "HOME": "/h",
        "HF_TOKEN": TOKEN,
        "API_KEY": "x",
        "OWN": "named in the config",
        "TOKENIZERS_PARALLELISM": "1",
    }
    plain = {"HOME": "/h", "TOKENIZERS_PARALLELISM": "1"}
    assert subtask.needed(environ, secrets=("OWN",)) == plain
    assert subtask.needed(environ, "some/model", secrets=("OWN",)) == {**plain, "HF_TOKEN": TOKEN}
    entries = [{"file_name": "a.jsonl"}, {"cloud_file_name": "s3://b/c.jsonl"}]
    assert subtask.needed(environ, "/a/folder", ("OWN",), remote=dataset.any_remote(entries[:1])) == plain
    assert subtask.needed(environ, "/a/folder", remote=dataset.any_remote(entries)) == environ
