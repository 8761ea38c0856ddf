"""Secrets are found wherever they stand in a file, are never printed, and what merely looks like one is let pass."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from cpt_launcher.config import arguments as schema
from cpt_launcher.config import document, secrets_in_files

from ..conftest import REPOSITORY, Outcome

SHAPES = [
    "hf_abcdefghijklmnopqrstuvwxyz", "github_pat_11ABCDEFG0abcdefghijkl",
    "ghp_" + "a1" * 18, "glpat-abcdefghij0123456789",
    "xoxb-123456789012-abcdef", "AIza" + "Sy" * 17 + "x", "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.abc",
    "AKIAIOSFODNN7EXAMPLE", "dapi" + "0123456789abcdef" * 2, "sk-proj-abcdefghijklmnopqrstuv", "sk-" + "aB3" * 16,
    "-----BEGIN OPENSSH PRIVATE KEY-----",
]  # fmt: skip
LINES = [
    "train: {ms_hub_token: ms-plain}", "train: {hub_token: plainhubtoken12345}", "train: {push_to_hub_token: x}",
    "train: {swanlab_api_key: abcdefghijkl}", "train: {swanlab_lark_webhook_url: 'https://h/hook/0'}",
    "env: {DB_PWD: pw}", "env: {WANDB_KEY: 0123456789abcdef}", "env: {GITHUB_PAT: anything}",
    "env: {MLFLOW_TRACKING_URI: 'https://user:envpw@h'}", "env: {http_proxy: 'http://u:pw@proxy:1'}",
    "tracking: {mlflow: {uri: 'https://user:cfgpw1234@h'}}", "tracking: {mlflow: {uri: 'https://h/?token=abc'}}",
    "tracking: {mlflow: {uri: 'https://user:p/s#s@h'}}",
    "corpus: {source: 'https://u:pw@h/a.jsonl'}", "corpus: {source: 'https://h/a.jsonl?X-Amz-Signature=0a1b'}",
    "corpus: {file_name: 'https://h/a.jsonl?sv=1&sig=0a%3D'}", "corpus: {source: 'https://h/a?X-Goog-Signature=0'}",
    "comet: {enabled: true, api_key: abc}", "a: [{b: {client_secret: abc}}]", "stage: pt\nhf_hub_token: abc",
    "a: 1  # hub_token: hf_abcdefghijklmnopqrstuvwxyz", "a: 1  # was https://u:pw@h/x",
]  # fmt: skip
HARMLESS = [
    "train: {hub_token: null}", "train: {hub_token: ''}", "train: {hub_token: $HF_TOKEN}",
    "env: {HF_TOKEN: '${HF_TOKEN}'}", "secrets: [HF_TOKEN, DB_PASSWORD]", "tracking: {mlflow: {uri: 'http://h:5'}}",
    "tracking: {mlflow: {uri: 'https://u:${PW}@h'}}", "corpus: {source: 'https://h/a.jsonl?download=true'}",
    "corpus: {source: 'hf://datasets/u/r@main/a.jsonl'}", "corpus: {source: 's3://b/k'}",
    "a: {sort_key: created_at_some_time}",
    "train: {ignore_pad_token_for_loss: true, max_new_tokens: 512}", "a: {pad_token: <pad>}",
    "a: runs/sk-learn-2024-01",
    "env: {AWS_WEB_IDENTITY_TOKEN_FILE: /var/run/token}", "a: 1  # see https://h/x?page=2",
]  # fmt: skip


def check(text: str, suffix: str = "yaml") -> list[tuple[str, str]]:
    found = secrets_in_files.check(document.parse(text, Path(f"x.{suffix}")))
    return [(problem.rule, problem.where) for problem in found]


@pytest.mark.parametrize("text", [*(f"a: {{b: ['{shape}']}}" for shape in SHAPES), *LINES])
def test_a_secret_is_found_once_and_not_printed(text: str) -> None:
    found = secrets_in_files.check(document.parse(text, Path("x.yaml")))
    assert [problem.rule for problem in found] == ["secret-in-file"]
    assert found[0].where.startswith("x.yaml:")
    told = f"{found[0].what} {found[0].hint}"
    assert not any(word in told for word in (*SHAPES, "plainhub", "cfgpw", "envpw", "pw@", "0a1b", "ms-plain", "p/s"))


@pytest.mark.parametrize("text", HARMLESS)
def test_what_is_none(text: str) -> None:
    assert check(text) == []


def test_places() -> None:
    assert check("name: r\ntrain:\n  bf16: true\n  hub_token: abc\nenv: {A: b, DB_PWD: c}\n") == [
        ("secret-in-file", "x.yaml:4:3"),
        ("secret-in-file", "x.yaml:5:13"),
    ]
    assert check("a: 1\nb: 2  # hf_abcdefghijklmnopqrstuvwxyz") == [("secret-in-file", "x.yaml:2:9")]
    assert check('{"a": 1,\n "x": {"source": "https://u:pw@h"}}', "json") == [("secret-in-file", "x.json:2:8")]


def test_of_all_arguments_only_credentials_are_refused() -> None:
    refused = {name for name in schema.load().arguments if check(f"train: {{{name}: some_value_of_16_and_more}}")}
    assert refused == {
        "hf_hub_token", "hub_token", "ms_hub_token", "om_hub_token", "push_to_hub_token", "swanlab_api_key",
        "swanlab_lark_secret", "swanlab_lark_webhook_url",
    }  # fmt: skip


SHIPPED = sorted(
    path
    for folder in ("configs", "dataset-configs", "deepspeed-configs")
    for path in (REPOSITORY / folder).iterdir()
    if path.suffix in (".yaml", ".json")
)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_shipped_files_hold_none(path: Path) -> None:
    assert secrets_in_files.check(document.read(path)) == []


@pytest.mark.parametrize("kind", ["config", "override", "registry", "deepspeed"])
def test_every_command_refuses_before_it_writes(cpt: Callable[..., Outcome], workspace: Path, kind: str) -> None:
    overrides = []
    if kind == "override":
        overrides = ["train.hub_token=planted77"]
    elif kind == "config":
        config = workspace / "my.yaml"
        config.write_text(config.read_text() + "tracking: {mlflow: {uri: 'https://u:planted77@h'}}\n")
    elif kind == "registry":
        registry = workspace / "dataset-configs" / "dataset_info.json"
        entry = json.loads(registry.read_text())
        entry["corpus"]["source"] = "https://h/corpus.jsonl?X-Amz-Signature=planted77"
        registry.write_text(json.dumps(entry))
    else:
        (workspace / "deepspeed-configs").mkdir()
        shipped = json.loads((REPOSITORY / "deepspeed-configs" / "ds_z3_config.json").read_text())
        leaking = {**shipped, "comet": {"api_key": "planted77"}}
        (workspace / "deepspeed-configs" / "mine.json").write_text(json.dumps(leaking))
        overrides = ["deepspeed=mine.json"]
    calls: list[list[str]] = [["run"], ["run", "--dry-run"], ["plan"], ["validate"], ["tokenize"]]
    calls += [["job", "--target", "anyscale", "--out", "out"]] + ([] if overrides else [["stage-data"]])
    if kind in ("deepspeed", "registry"):
        calls.append(["stage-data-all"])
    before = sorted(workspace.rglob("*"))
    for command, *options in calls:
        arguments = [command, "my.yaml", *overrides, *options]
        done = cpt(*(["stage-data", "--storage", "storage"] if command == "stage-data-all" else arguments))
        assert (done.code, "a file is no place for one" in done.err + done.out) == (2, True), (
            command,
            done.out,
            done.err,
        )
        assert "planted77" not in done.out + done.err
    assert sorted(workspace.rglob("*")) == before


@pytest.mark.parametrize(
    "line",
    [
        "tracking: {mlflow: {uri: ['https://u:planted77@h']}}",
        "env: {DB_PWD: 7777777}",
        "model: [https://u:planted77@h]",
    ],
)
def test_messages_about_something_else_do_not_show_it(cpt: Callable[..., Outcome], workspace: Path, line: str) -> None:
    config = workspace / "my.yaml"
    config.write_text(config.read_text().replace("model: some/model\n", "") + line + "\n")
    done = cpt("validate", "my.yaml")
    assert (done.code, "planted77" in done.out + done.err, "7777777" in done.out + done.err) == (2, False, False)
    assert "must be text" in done.out + done.err
