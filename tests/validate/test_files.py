"""Each rule is shown to fire, at its place, and not to fire on what is right."""

import json
import os
import re
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from cpt_launcher.config import arguments
from cpt_launcher.validate import files
from cpt_launcher.validate.files import Options

from ..conftest import REPOSITORY, Outcome

CONFIG = "name: r\nstorage: /s\nmodel: a/b\ndataset: corpus\nresources: {gpus: 2}\ntrain:\n  bf16: true\n"  # 7 lines
PLAIN = "stage: pt\ndo_train: true\nfinetuning_type: full\nbf16: true\nreport_to: none\n"  # 5 lines
RAY = PLAIN + "ray_run_name: r\n"  # 6 lines
DS = '{"train_batch_size": "auto", "zero_optimization": {"stage": 2}}'
ENTRY = '{"a": {"file_name": "corpus.jsonl", "columns": {"prompt": "text"}}}'
Found = list[tuple[str, int, int]]


def found(path: Path, *overrides: str, data: bool = False) -> Found:
    report = files.validate([path], Options(overrides, data, environ={}))
    return [(f"{item.severity[0].upper()} {item.rule}", item.line, item.column) for item in report.findings]


def entry(**changed: object) -> str:
    return json.dumps({"a": {"file_name": "corpus.jsonl", "columns": {"prompt": "text"}, **changed}})


CASES: list[tuple[str, str, Found]] = [
    # files
    ("x.yaml", "a: [", [("E yaml-syntax", 2, 1)]),
    ("x.yaml", "name: r\n\tstorage: s\n", [("E yaml-syntax", 2, 1)]),
    ("x.yaml", CONFIG + "name: s\n", [("E duplicate-key", 8, 1)]),
    ("x.yaml", "hello: world\n", [("E unknown-file", 1, 1)]),
    # launcher configs
    ("x.yaml", CONFIG, []),
    ("x.yaml", CONFIG + "nmae: s\n", [("E unknown-key", 8, 1)]),
    ("x.yaml", CONFIG.replace("name: r\n", ""), [("E missing-key", 1, 1)]),
    ("x.yaml", CONFIG.replace("{gpus: 2}", "{gpus: two}"), [("E wrong-type", 5, 13)]),
    ("x.yaml", CONFIG.replace("{gpus: 2}", "2"), [("E wrong-type", 5, 1)]),
    ("x.yaml", CONFIG.replace("{gpus: 2}", "{}"), [("E wrong-value", 5, 1)]),
    # a misspelt key is one mistake, and what is wrong with its value another
    ("x.yaml", CONFIG.replace("dataset", "datset"), [("E unknown-key", 4, 1)]),
    (
        "x.yaml",
        CONFIG.replace("dataset: corpus", "datset: corpse"),
        [("E unknown-dataset", 4, 1), ("E unknown-key", 4, 1)],
    ),
    ("x.yaml", CONFIG.replace("gpus", "gpu"), [("E unknown-key", 5, 13)]),
    ("x.yaml", CONFIG.replace("bf16", "bf61"), [("E unknown-argument", 7, 3)]),
    ("x.yaml", CONFIG.replace("train:\n  bf16", "bf16"), [("E unknown-key", 6, 1)]),
    ("x.yaml", CONFIG.replace("  bf16: true", "  seed: 1").replace("gpus: 2", "cpus: -1"), [("E wrong-value", 5, 1)]),
    ("x.yaml", PLAIN.replace("finetuning_type", "finetuning_typ"), [("E unknown-argument", 3, 1)]),
    ("x.yaml", RAY.replace("ray_run_name", "ray_run_nam"), [("E unknown-argument", 6, 1)]),
    # a model's folder
    ("x.yaml", CONFIG.replace("a/b", "/no/such/model"), [("W model-folder", 3, 1)]),
    ("x.yaml", CONFIG.replace("a/b", "/mnt/models"), [("W model-folder", 3, 1)]),
    ("x.yaml", CONFIG.replace("a/b", "/usr/model"), [("E model-folder", 3, 1)]),
    ("x.yaml", CONFIG.replace("a/b", "/usr"), [("E model-folder", 3, 1)]),
    ("x.yaml", CONFIG.replace("a/b", "./models/tiny"), [("E model-folder", 3, 1)]),
    ("x.yaml", CONFIG.replace("a/b", "~/no/such/model"), [("E model-folder", 3, 1)]),
    ("x.yaml", CONFIG.replace("a/b", "/s/models/tiny"), []),
    ("x.yaml", PLAIN + "model_name_or_path: /no/such/model\n", [("W model-folder", 6, 1)]),
    ("x.yaml", CONFIG.replace("/s", "${NOPE}/s"), [("E unset-variable", 2, 1)]),
    ("x.yaml", CONFIG + "  stage: sft\n", [("E owned-key", 8, 3)]),
    ("x.yaml", CONFIG.replace("corpus", "corpse"), [("E unknown-dataset", 4, 1)]),
    ("x.yaml", CONFIG + "deepspeed: ds_z9.json\n", [("E unknown-deepspeed", 8, 1)]),
    ("x.yaml", CONFIG + "template: nope\n", [("E launcher-template", 8, 1)]),
    ("x.yaml", CONFIG.replace("/s", "/mnt/cluster_storage"), []),
    ("x.yaml", CONFIG + "env: {HF_TOKEN: x}\n", [("E secret-in-file", 8, 7)]),
    ("x.yaml", CONFIG + "  run_name: hf_abcdefghijklmnopqrstuvwxyz\n", [("E secret-in-file", 8, 3)]),
    ("x.yaml", CONFIG + "  run_name: <your name>\n", [("E placeholder", 8, 3)]),
    ("x.yaml", CONFIG + "  trust_remote_code: true\n", [("W remote-code", 8, 3)]),
    ("x.yaml", CONFIG + "  trust_remote_code: false\n", []),
    ("x.yaml", PLAIN + "trust_remote_code: true\n", [("W remote-code", 6, 1)]),
    ("x.yaml", CONFIG + "env: {LD_PRELOAD: /x.so}\n", [("W env-program", 8, 7)]),
    ("x.yaml", RAY + "ray_init_kwargs: {runtime_env: {env_vars: {PATH: /x}}}\n", [("W env-program", 7, 44)]),
    ("dataset_info.json", "{" + ENTRY[1:-1] + ', "b": {"script_url": "x.py"}}', [("W registry-columns", 1, 69)]),
    # arguments, in both kinds of file
    ("x.yaml", CONFIG + "  cutof_len: 5\n", [("E unknown-argument", 8, 3)]),
    ("x.yaml", PLAIN + "use_v1_kernels: true\n", [("E unknown-argument", 6, 1)]),
    ("x.yaml", PLAIN + "learning_rate: 1e-4\n", [("E number-as-text", 6, 1)]),
    ("x.yaml", CONFIG + "  learning_rate: 1e-4\n", []),
    ("x.yaml", CONFIG + "  cutoff_len: '512'\n", [("E number-as-text", 8, 3)]),
    ("x.yaml", CONFIG + "  per_device_train_batch_size: many\n", [("E wrong-type", 8, 3)]),
    ("x.yaml", CONFIG + "  plot_loss: 'false'\n", [("E wrong-type", 8, 3)]),
    ("x.yaml", CONFIG + "  max_steps:\n", [("E wrong-type", 8, 3)]),
    ("x.yaml", CONFIG + "  lr_scheduler_type: cosinee\n", [("E wrong-choice", 8, 3)]),
    ("x.yaml", CONFIG + "  template: gemmma\n", [("E wrong-choice", 8, 3)]),
    ("x.yaml", PLAIN.replace("pt", "ptt"), [("E wrong-choice", 1, 1)]),
    ("x.yaml", CONFIG + "  num_train_epochs: -1\n", [("E out-of-range", 8, 3)]),
    ("x.yaml", CONFIG + "  learning_rate: .nan\n", [("E out-of-range", 8, 3)]),
    ("x.yaml", RAY + "ray_num_workers: -4\n", [("E out-of-range", 7, 1)]),
    ("x.yaml", CONFIG + "  run_name: ${USER}\n", [("E unexpanded-variable", 8, 3)]),
    ("x.yaml", RAY + "output_dir: out\n", [("E relative-path", 7, 1)]),
    ("x.yaml", PLAIN + "output_dir: out\n", []),
    ("x.yaml", RAY + "ray_storage_path: ~/s\n", [("E relative-path", 7, 1)]),
    ("x.yaml", RAY + "ray_storage_path: s3://b/x\n", [("E storage-url", 7, 1), ("E wrong-value", 7, 1)]),
    ("x.yaml", RAY + "ray_storage_path: /tmp/x\n", [("W storage-scope", 7, 1)]),
    ("x.yaml", PLAIN.replace("do_train: true\n", ""), [("E not-trained", 1, 1)]),
    ("x.yaml", "model_name_or_path: m\n" + PLAIN.replace("stage: pt\n", ""), [("E stage", 1, 1)]),
    ("x.yaml", PLAIN.replace("pt", "sft"), [("W stage", 1, 1)]),
    ("x.yaml", PLAIN.replace("finetuning_type: full\n", ""), [("E lora-by-default", 1, 1)]),
    ("x.yaml", CONFIG + "  template: gemma\n", [("W template-eos", 8, 3)]),
    ("x.yaml", CONFIG + "  template: llama3\n", []),
    ("x.yaml", CONFIG + "  fp16: true\n", [("E precision", 8, 3)]),
    ("x.yaml", CONFIG.replace("true", "false"), [("W precision", 7, 3)]),
    ("x.yaml", CONFIG.replace("gpus: 2", "cpus: 2"), [("E precision", 7, 3)]),
    ("x.yaml", CONFIG + "  eval_strategy: steps\n", [("E evaluation", 8, 3)]),
    ("x.yaml", CONFIG + "  val_size: 0.1\n", [("W evaluation", 8, 3)]),
    ("x.yaml", CONFIG + "  load_best_model_at_end: true\n", [("E cadence", 8, 3)]),
    (
        "x.yaml",
        CONFIG + "  save_steps: 50\n  eval_steps: 20\n  eval_strategy: steps\n  val_size: 0.1\n",
        [("W cadence", 8, 3)],
    ),
    ("x.yaml", CONFIG + "  save_strategy: 'no'\n", [("W checkpoints", 8, 3)]),
    ("x.yaml", CONFIG + "  save_strategy: no\n", [("E wrong-type", 8, 3)]),
    ("x.yaml", CONFIG + "  max_steps: 10\n  save_steps: 50\n", [("W checkpoints", 9, 3)]),
    ("x.yaml", CONFIG + "  save_only_model: true\n", [("W checkpoints", 8, 3)]),
    ("x.yaml", CONFIG + "  resume_from_checkpoint: true\n", [("E resume", 8, 3), ("E wrong-type", 8, 3)]),
    ("x.yaml", CONFIG + "  packing: false\n", [("W packing", 8, 3)]),
    ("x.yaml", CONFIG + "  neat_packing: true\n", [("E packing", 8, 3)]),
    ("x.yaml", CONFIG + "  streaming: true\n", [("E streaming", 8, 3), ("E streaming", 8, 3)]),
    ("x.yaml", CONFIG + "  streaming: true\n  max_steps: 5\n  dataloader_num_workers: 1\n  save_steps: 5\n", []),
    ("x.yaml", CONFIG + "  tokenized_path: /s/t\n", [("W tokenized-path", 8, 3)]),
    ("x.yaml", PLAIN.replace("none", "mlflw"), [("E tracker", 5, 1)]),
    ("x.yaml", PLAIN.replace("report_to: none\n", ""), [("W tracker", 1, 1)]),
    ("x.yaml", PLAIN.replace("none", "mlflow"), [("W tracker", 5, 1)]),
    ("x.yaml", RAY + "resources_per_worker: {gpu: 1, GPU: 1}\n", [("E ray-resources", 7, 1)]),
    ("x.yaml", RAY + "ray_init_kwargs: {num_gpus: 4}\n", [("W ray-resources", 7, 1)]),
    # DeepSpeed
    ("d.json", DS, []),
    ("d.json", DS.replace('"train_batch_size"', '"x"'), [("E ds-batch", 1, 1), ("W ds-key", 1, 2)]),
    ("d.json", DS.replace("stage", "stagee"), [("W ds-key", 1, 52)]),
    ("d.json", DS.replace("2", "3"), [("W ds-gather", 1, 30)]),
    ("d.json", DS.replace("2", "7"), [("E wrong-value", 1, 52)]),
    ("d.json", DS.replace("2", '1, "offload_param": {"device": "cpu"}'), [("E ds-offload", 1, 64)]),
    ("d.json", DS[:-1] + ', "scheduler": {}}', [("W ds-scheduler", 1, 65)]),
    # registries
    ("dataset_info.json", ENTRY, []),
    ("dataset_info.json", "[]", [("E registry-entry", 1, 1)]),
    ("dataset_info.json", '{"a": 3}', [("E registry-entry", 1, 2)]),
    ("dataset_info.json", entry(colums={}), [("W registry-key", 1, 68)]),
    (
        "dataset_info.json",
        entry(columns={"text": "text"}),
        [("W registry-columns", 1, 37), ("E registry-columns", 1, 49)],
    ),
    ("dataset_info.json", entry(formatting="sharegtp"), [("E registry-format", 1, 68)]),
    ("dataset_info.json", entry(num_samples=5), [("W registry-samples", 1, 68)]),
    ("dataset_info.json", entry(file_name="absent.jsonl"), [("E registry-file", 1, 8)]),
    ("dataset_info.json", entry(file_name="/absent/c.jsonl"), [("W registry-file", 1, 8)]),
    ("dataset_info.json", entry(file_name="x.YAML"), [("E registry-file", 1, 8)]),
    ("dataset_info.json", entry(file_name="mixed"), [("E registry-file", 1, 8)]),
    ("dataset_info.json", entry(source="s3://bucket/shards/", file_name="shards"), []),
    ("dataset_info.json", entry(source="https://h/c.jsonl?X-Sig=1", file_name="c.jsonl"), []),
    ("dataset_info.json", entry(source="file:///etc/c.jsonl"), [("E registry-source", 1, 68)]),
    ("dataset_info.json", entry(source="corpus.jsonl", file_name=".."), [("E registry-file", 1, 8)]),
    ("dataset_info.json", entry(sha256="0"), [("E registry-source", 1, 68)]),
]  # fmt: skip


@pytest.fixture
def folder(workspace: Path) -> Path:
    """A config folder beside a registry that knows `corpus`."""
    (workspace / "corpus.jsonl").write_text('{"text": "a"}\n')
    (workspace / "x.YAML").touch()
    (workspace / "mixed").mkdir()
    (workspace / "mixed" / "a.json").touch()
    (workspace / "mixed" / "b.csv").touch()
    return workspace


@pytest.mark.parametrize(("name", "text", "expected"), CASES)
def test_what_is_found_and_where(folder: Path, name: str, text: str, expected: Found) -> None:
    path = folder / name
    path.write_text(text)
    assert found(path) == expected


def test_deepspeed_against_its_config(folder: Path) -> None:
    (folder / "ds.json").write_text(
        '{"train_batch_size": 8,\n"gradient_clipping": 2,\n"optimizer": {"params": {"lr": 1}},\n'
        '"bf16": {"enabled": false},\n"zero_optimization": {"stage": 2}}'
    )
    config = folder / "x.yaml"
    config.write_text(
        CONFIG + "  per_device_train_batch_size: 2\n  gradient_accumulation_steps: 3\ndeepspeed: ds.json\n"
    )
    report = files.validate([config], Options(environ={}))
    assert [(Path(item.path).name, item.rule, item.line) for item in report.findings] == [
        ("ds.json", "ds-batch", 1),
        ("ds.json", "ds-mismatch", 2),
        ("ds.json", "ds-mismatch", 3),
        ("ds.json", "ds-mismatch", 4),
    ]
    assert report.findings[0].message == "train_batch_size is 8, and the YAML makes it 12"


def test_a_deepspeed_file_that_is_none(folder: Path) -> None:
    (folder / "ds.json").write_text("[]")
    (folder / "x.yaml").write_text(CONFIG + "deepspeed: ds.json\n")
    assert found(folder / "x.yaml") == [("E ds-json", 1, 1)]


DATA_CASES = [
    ('{"text": "a"}\n\n{"text": "b"}\n', []),
    ('{"text": "a"}\n{"text": }\n', [("E data-record", 2)]),
    ('{"text": "a"}\n{"txt": "a"}\n', [("E data-record", 2)]),
    ('{"text": "a"}\n{"text": 3}\n', [("E data-record", 2)]),
    ('{"text": "a"}\n["a"]\n', [("E data-record", 2)]),
    ('{"text": "a"}\n{"text": ""}\n', [("W data-record", 2)]),
    ("", [("E data-empty", 1)]),
    (b'{"text": "a"}\n{"text": "\xff"}\n', [("E data-encoding", 2)]),
    ('{"text": "a"}\n' + "x\n" * 9, [("E data-record", line) for line in (2, 3, 4, 5, 6, 6)]),
]


@pytest.mark.parametrize(("content", "expected"), DATA_CASES)
def test_data_is_read_through(folder: Path, content: str | bytes, expected: list[tuple[str, int]]) -> None:
    (folder / "dataset_info.json").write_text(ENTRY)
    (folder / "corpus.jsonl").write_bytes(content if isinstance(content, bytes) else content.encode())
    report = found(folder / "dataset_info.json", data=True)
    assert [(rule, line) for rule, line, _ in report] == expected


def corpus_of(folder: Path, documents: int, length: int) -> None:
    record = json.dumps({"text": "x" * length}) + "\n"
    (folder / "dataset-configs" / "corpus.jsonl").write_text(record * documents)


@pytest.mark.parametrize(
    ("documents", "length", "train", "expected"),
    [
        (3, 20, "", [("E data-size", 4, 1)]),
        (10, 500, "", [("W data-size", 4, 1)]),
        (100, 5000, "  preprocessing_num_workers: 16\n", [("W data-loss", 8, 3)]),
        (100, 5000, "  preprocessing_num_workers: 1\n", []),
    ],
)
def test_a_corpus_against_its_blocks(folder: Path, documents: int, length: int, train: str, expected: Found) -> None:
    corpus_of(folder, documents, length)
    (folder / "x.yaml").write_text(CONFIG + train + "  cutoff_len: 512\n  per_device_train_batch_size: 2\n")
    assert found(folder / "x.yaml", data=True) == expected


@pytest.mark.parametrize(
    ("documents", "length", "expected"),
    [
        (3, 20, ["'small' and 'other' together cannot fill one block of 512 tokens"]),
        (10, 500, ["'small' and 'other' together: about 2 blocks of 512 tokens, and a step takes 4"]),
        (10, 5000, []),
    ],
)
def test_a_mix_is_judged_by_its_sum(folder: Path, documents: int, length: int, expected: list[str]) -> None:
    corpus_of(folder, documents, length)
    (folder / "dataset-configs" / "small.jsonl").write_text('{"text": "a"}\n')
    columns = {"columns": {"prompt": "text"}}
    entries = {"small": {"file_name": "small.jsonl", **columns}, "other": {"file_name": "corpus.jsonl", **columns}}
    (folder / "dataset-configs" / "dataset_info.json").write_text(json.dumps(entries))
    mixed = CONFIG.replace("dataset: corpus", "dataset: [small, other]")
    (folder / "x.yaml").write_text(mixed + "  cutoff_len: 512\n  per_device_train_batch_size: 2\n")
    report = files.validate([folder / "x.yaml"], Options(data=True, environ={}))
    assert [item.message for item in report.findings] == expected


def test_data_that_is_not_there_is_said_to_be_absent(folder: Path) -> None:
    (folder / "corpus.jsonl").unlink()
    (folder / "dataset_info.json").write_text(ENTRY)
    report = files.validate([folder / "dataset_info.json"], Options(data=True, environ={}))
    assert report.notes == [f"a: not read, it is not there: {folder}/corpus.jsonl"]
    (folder / "x.yaml").write_text(CONFIG)
    (folder / "dataset-configs" / "dataset_info.json").write_text('{"corpus": {"source": "../textz"}}')
    messages = [item.message for item in files.validate([folder / "x.yaml"], Options(environ={})).findings]
    assert messages == [f"the data of 'corpus' is not there: {folder}/textz"]


def test_every_rule_is_shown_to_fire() -> None:
    shown = {rule.split()[1] for _, _, expected in CASES for rule, _, _ in expected}
    shown |= {rule.split()[1] for _, expected in DATA_CASES for rule, _ in expected}
    elsewhere = {
        "data-changed",
        "model-shape",
        "ds-mismatch",
        "data-size",
        "data-loss",
        "file-unreadable",
        "ds-json",
        "strict",
    }
    elsewhere |= {"data-lines"}  # test_texts.py
    elsewhere |= {"remote-code", "env-program", "model-files"}  # test_check_trust.py
    assert set(arguments.rules()) == shown | elsewhere


def test_overrides_are_checked_too(folder: Path) -> None:
    (folder / "x.yaml").write_text(CONFIG)
    assert found(folder / "x.yaml", "train.cutof_len=3") == [("E unknown-argument", 1, 1)]
    report = files.validate([folder / "x.yaml"], Options(("train.max_steps=abc",), environ={}))
    assert [item.path for item in report.findings] == ["command line"]


def test_shipped_files_have_neither_errors_nor_warnings() -> None:
    folders = [REPOSITORY / name for name in ("configs", "deepspeed-configs", "dataset-configs")]
    report = files.validate(folders, Options(data=True, environ={}))
    assert (report.files, report.findings) == (14, [])


def test_an_absent_storage_is_a_remark(folder: Path) -> None:
    (folder / "x.yaml").write_text(CONFIG)
    (remark,) = files.validate([folder / "x.yaml"], Options(environ={})).notes
    assert remark.startswith("the storage /s is not on this machine")
    assert files.validate([folder / "x.yaml"], Options((f"storage={folder}",), environ={})).notes == []


def test_every_bad_override_is_named_beside_the_files_own_mistakes(folder: Path) -> None:
    (folder / "x.yaml").write_text(CONFIG.replace("name: r", "name: a/b"))
    report = files.validate([folder / "x.yaml"], Options(("nonsense", "name.x=1", "train.seed=1"), environ={}))
    assert [item.place for item in report.findings] == [f"{folder}/x.yaml:1:1", "command line", "command line"]


def test_what_shows_only_in_the_plan(folder: Path) -> None:
    sliced = {"a": {"file_name": "corpus.jsonl", "columns": {"prompt": "text"}, "split": "train[:50%]"}}
    (folder / "dataset-configs" / "dataset_info.json").write_text(json.dumps(sliced))
    (folder / "x.yaml").write_text(CONFIG.replace("corpus", "a") + "eval: {share: 0.01}\n")
    (finding,) = files.validate([folder / "x.yaml"], Options(environ={})).findings
    assert "nothing can be held out of a" in finding.message


def test_an_unquoted_no_is_explained_only_where_no_is_a_choice(folder: Path) -> None:
    (folder / "x.yaml").write_text(CONFIG + "  save_strategy: no\n  cutoff_len: no\n")
    findings = files.validate([folder / "x.yaml"], Options(environ={})).findings
    assert {item.message.split()[0]: "in quotes" in item.hint for item in findings if item.rule == "wrong-type"} == {
        "save_strategy": True, "cutoff_len": False
    }  # fmt: skip


Cpt = Callable[..., Outcome]


def test_formats_and_exit_codes(cpt: Cpt, folder: Path) -> None:
    (folder / "bad.yaml").write_text(CONFIG.replace("/s", str(folder)) + "  cutof_len: 5\n")
    (folder / "warned.yaml").write_text(CONFIG + "  packing: false\n")
    bad = cpt("validate", "bad.yaml")
    hint = "(did you mean 'cutoff_len'?)"
    message = f"LLaMA-Factory 0.9.3 has no argument 'cutof_len' {hint}"
    assert (bad.code, bad.out) == (2, f"bad.yaml:8:3: error[unknown-argument]: {message}\n")
    assert bad.err == "cpt: 1 file, 1 error, 0 warnings\n"
    github = cpt("validate", "bad.yaml", "--format", "github")
    assert github.out == f"::error file=bad.yaml,line=8,col=3,title=unknown-argument::{message}\n"
    assert [item["rule"] for item in json.loads(cpt("validate", "bad.yaml", "--json").out)["findings"]] == [
        "unknown-argument"
    ]
    assert cpt("validate", "warned.yaml").code == 0
    assert cpt("validate", "warned.yaml", "--warnings-as-errors").code == 2
    (folder / "dataset-configs" / "corpus.jsonl").write_text("{")
    assert cpt("validate", "warned.yaml", "--data").code == 3
    assert cpt("validate", "absent.yaml").code == 2
    assert cpt("validate").code == 2


SEVERAL = """name: x
storage: storage
model: a/b
datset: corpus
resources: {cpus: 2}
train:
  cutof_len: 512
  learning_rate: "3e-3"
  bf16: false
"""


@pytest.mark.parametrize("command", ["run", "plan", "job", "stage-data", "tokenize", "fetch-model"])
def test_every_command_refuses_what_validate_finds(cpt: Cpt, folder: Path, command: str) -> None:
    (folder / "several.yaml").write_text(SEVERAL)
    checked = cpt("validate", "several.yaml", "--json")
    findings = json.loads(checked.out)["findings"]
    assert [(item["line"], item["rule"]) for item in findings] == [
        (4, "unknown-key"), (7, "unknown-argument"), (8, "number-as-text")
    ]  # fmt: skip
    refused = cpt(command, "several.yaml")
    assert refused.code == checked.code == 2
    assert re.findall("^error: (.*)$", refused.err, re.MULTILINE) == [item["message"] for item in findings]
    assert "warning" not in refused.err
    assert refused.err.count("  next:") == 3


def test_run_refuses_overrides_too(cpt: Cpt, folder: Path) -> None:
    refused = cpt("run", "my.yaml", "train.cutof_len=5", "train.max_steps=abc", "--dry-run")
    assert refused.code == 2
    assert refused.err.count("error: ") == refused.err.count("  next: ") == 2
    assert "where: command line\n" in refused.err


def test_strange_files(cpt: Cpt, folder: Path) -> None:
    (folder / "binary.yaml").write_bytes(os.urandom(5000) + b"\xff")
    with (folder / "huge.yaml").open("wb") as file:
        file.truncate(1 << 30)
    (folder / "loop.yaml").symlink_to("loop.yaml")
    (folder / "folder.yaml").symlink_to(".")
    os.mkfifo(folder / "pipe.yaml")
    (folder / "deep").mkdir()
    (folder / "deep" / "up").symlink_to("..")
    began = time.monotonic()
    done = cpt("validate", ".")
    assert time.monotonic() - began < 5
    assert done.code == 2
    named = {line.split(":")[0] for line in done.out.splitlines() if "file-unreadable" in line or "yaml-syntax" in line}
    assert named == {"binary.yaml", "huge.yaml", "loop.yaml", "pipe.yaml"}
