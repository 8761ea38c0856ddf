import json
import os
import signal
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from ..conftest import REPOSITORY, Outcome

Cpt = Callable[..., Outcome]


def test_a_dry_run_shows_all_and_writes_nothing(cpt: Cpt, workspace: Path) -> None:
    before = sorted(workspace.rglob("*"))
    done = cpt("run", "my.yaml", "--dry-run")
    assert done.code == 0
    for part in (
        f"{workspace}/dataset-configs/corpus.jsonl\n    -> {workspace}/storage/corpus.jsonl",
        f"corpus -> {workspace}/storage/dataset_info.json",
        "stage: pt\n",
        "HF_TOKEN=(NOT SET)",
        f"llamafactory-cli train {workspace}/storage/first/cpt/train.yaml",
    ):
        assert part in done.out
    assert "warning: the secret HF_TOKEN is not set" in done.err
    assert sorted(workspace.rglob("*")) == before


def test_a_dry_run_masks_secrets_and_names_what_it_removes(
    cpt: Cpt, workspace: Path, clean_env: pytest.MonkeyPatch
) -> None:
    clean_env.setenv("HF_TOKEN", "hf_planted")
    clean_env.setenv("FORCE_TORCHRUN", "1")
    done = cpt("run", "my.yaml", "--dry-run")
    assert "HF_TOKEN=(set, not shown)" in done.out
    assert "(removed) FORCE_TORCHRUN" in done.out
    assert "hf_planted" not in done.out + done.err


@pytest.mark.parametrize("config", sorted((REPOSITORY / "configs").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_config_dry_runs_without_storage_secret_or_stack(config: Path, tmp_path: Path) -> None:
    code = (
        "import sys, importlib.abc\n"
        "class Refuse(importlib.abc.MetaPathFinder):\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name in {'torch', 'ray', 'transformers', 'llamafactory', 'mlflow', 'fsspec'}:\n"
        "            raise ImportError(name)\n"
        "sys.meta_path.insert(0, Refuse())\n"
        f"from cpt_launcher.cli.app import main; main(['run', {str(config)!r}, '--dry-run'])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env={}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "code", "what"),
    [
        (["run", "absent.yaml"], 2, "there is no file absent.yaml"),
        (["run", "bad.yaml"], 2, "not valid YAML"),
        (["run", "."], 2, "is a folder"),
        (["run", "my.yaml", "dataset=corpse"], 2, "no dataset 'corpse' is registered"),
        (["run", "my.yaml", "deepspeed=ds_z9.json"], 2, "there is no DeepSpeed file 'ds_z9.json'"),
        (["run", "my.yaml", "template=nope"], 2, "there is no template 'nope'"),
        (["run", "my.yaml", "nonsense"], 2, "'nonsense' is not key=value"),
        (["stage-data", "my.yaml", "--storage", "/absent/storage"], 5, "the storage is not there"),
        (["stage-data"], 2, "stage to where?"),
        (["run"], 2, ""),
        (["no-such-command"], 2, ""),
    ],
)
def test_bad_input_ends_in_one_message(cpt: Cpt, workspace: Path, arguments: list[str], code: int, what: str) -> None:
    (workspace / "bad.yaml").write_text("a: [")
    done = cpt(*arguments)
    assert done.code == code
    assert what in done.err
    assert "Traceback" not in done.err
    assert list((workspace / "storage").iterdir()) == []


@pytest.mark.parametrize(
    ("line", "what", "then"),
    [
        ("run my.yaml --cutoff_len 512", "`cpt run` has no option --cutoff_len", "train.cutoff_len=512"),
        ("run my.yaml --cutoff-len=512", "`cpt run` has no option --cutoff-len", "train.cutoff_len=512"),
        ("plan my.yaml --storage /s", "`cpt plan` has no option --storage", "storage=/s"),
        ("run my.yaml --seed --dry-run", "`cpt run` has no option --seed", "train.seed=..."),
        ("run my.yaml --dryrun", "`cpt run` has no option --dryrun", "did you mean '--dry-run'?"),
        ("stage-data my.yaml --seed 1", "`cpt stage-data` has no option --seed", "train.seed=1"),
        ("runs --seed 1", "`cpt runs` has no option --seed", "its options: --storage, "),
        ("run", "missing argument 'config'", "cpt run [OPTIONS] CONFIG [KEY=VALUE]... (more: cpt run --help)"),
        ("run my.yaml --retries x", "invalid value for '--retries': ", "cpt run --help"),
        ("vali", "no such command 'vali'", "did you mean 'validate'?"),
        ("nonsense", "no such command 'nonsense'", "the commands are run, "),
        ("configs nonsense", "no such command 'nonsense'", "the commands are list, show, copy"),
        ("run my.yaml train.cutoff_len=abc", "cutoff_len must be int, not 'abc'", "for example cutoff_len: "),
    ],
)
def test_a_usage_error_says_what_to_type(cpt: Cpt, workspace: Path, line: str, what: str, then: str) -> None:
    done = cpt(*line.split())
    first, where, then_line = done.err.splitlines()
    assert (done.code, done.out, where) == (2, "", "  where: command line")
    assert first.startswith(f"error: {what}")
    assert then_line.startswith("  next:  ")
    assert then in then_line


def test_without_a_command_the_help_is_shown(cpt: Cpt) -> None:
    for arguments in ((), ("configs",)):
        done = cpt(*arguments)
        assert (done.code, done.out) == (2, "")
        assert done.err.startswith("Usage: cpt ")


def test_a_storage_that_is_not_there_ends_alike_everywhere(cpt: Cpt, workspace: Path, tmp_path: Path) -> None:
    absent = str(tmp_path / "absent")
    for line in (
        "runs --storage {0}", "status first --storage {0}", "status my.yaml --storage {0}",
        "logs first --storage {0}", "checkpoints first --storage {0}", "export first --to out --storage {0}",
        "eval first --storage {0}", "ui --storage {0}", "resume first --storage {0}",
        "stage-data my.yaml --storage {0}", "stage-data --storage {0}", "fetch-model my.yaml storage={0}",
        "tokenize my.yaml storage={0}",
    ):  # fmt: skip
        done = cpt(*line.format(absent).split())
        assert (done.code, done.err.splitlines()[0]) == (5, "error: the storage is not there"), line
        assert f"  where: {absent}" in done.err.splitlines()


def test_stage_data_twice(cpt: Cpt, workspace: Path) -> None:
    first = cpt("stage-data", "my.yaml", "--json")
    storage = workspace / "storage"
    assert first.code == 0
    assert [(item["path"], item["outcome"]) for item in json.loads(first.out)["staged"]] == [
        (f"{storage}/{name}", "created") for name in ("corpus.jsonl", "ds_z3_config.json", "dataset_info.json")
    ]
    second = cpt("stage-data", "my.yaml")
    assert second.out == ""
    assert f"cpt: identical {storage}/corpus.jsonl (100 documents, about 500 tokens)" in second.err.splitlines()
    assert [line.split()[1] for line in second.err.splitlines() if str(storage) in line] == ["identical"] * 3


def test_stage_data_of_everything_in_the_working_directory(cpt: Cpt, workspace: Path) -> None:
    done = cpt("stage-data", "--storage", "storage", "--json")
    staged = {Path(item["path"]).name for item in json.loads(done.out)["staged"]}
    assert staged == {
        "corpus.jsonl", "dataset_info.json", "ds_z2_config.json", "ds_z3_config.json", "ds_z3_fast_config.json",
        "ds_z3_offload_config.json",
    }  # fmt: skip


def test_version_and_help(cpt: Cpt) -> None:
    assert cpt("--version").out == "cpt 0.1.0\n"
    assert cpt("--help").code == 0


@pytest.mark.e2e
def test_the_wheel_brings_configs_and_templates(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(tmp_path), str(REPOSITORY)]
    subprocess.run(build, check=True, capture_output=True)
    [wheel] = tmp_path.glob("*.whl")
    inside = {name.removeprefix("cpt_launcher/") for name in zipfile.ZipFile(wheel).namelist()}
    shipped = [path for folder in ("configs", "deepspeed-configs", "dataset-configs") for path in folder_files(folder)]
    assert {f"shipped/{path}" for path in shipped} | {"templates/cpt.yaml.j2"} <= inside


def folder_files(folder: str) -> list[str]:
    return [f"{folder}/{path.name}" for path in (REPOSITORY / folder).iterdir()]


def test_configs_list_show_copy(cpt: Cpt, workspace: Path) -> None:
    assert "configs/gemma3_4b.yaml" in cpt("configs", "list").out.splitlines()
    assert (
        cpt("configs", "show", "ds_z3_config.json").out
        == (REPOSITORY / "deepspeed-configs" / "ds_z3_config.json").read_text()
    )
    assert cpt("configs", "copy", "tiny_cpu").code == 0
    first, *rest = (workspace / "tiny_cpu.yaml").read_text().splitlines()
    assert rest == (REPOSITORY / "configs" / "tiny_cpu.yaml").read_text().splitlines()[1:]
    assert Path(first.partition("file://")[2]).is_file()
    assert cpt("validate", "tiny_cpu.yaml").code == 0
    again = cpt("configs", "copy", "tiny_cpu")
    assert (again.code, "is there already" in again.err) == (2, True)
    assert cpt("configs", "show", "nope").code == 2


def test_schema_prints_json(cpt: Cpt) -> None:
    assert json.loads(cpt("schema").out)["title"] == "cpt-launcher config"


def test_bad_data_stops_a_staging_before_it_writes(cpt: Cpt, workspace: Path) -> None:
    (workspace / "dataset-configs" / "corpus.jsonl").write_text('{"text": "a"}\n{"txt": 1}\n')
    done = cpt("stage-data", "my.yaml")
    assert done.code == 3
    assert "corpus.jsonl:2:1" in done.err
    assert [path.name for path in (workspace / "storage").rglob("*")] == []


@pytest.mark.e2e
def test_strict_asks_llamafactory(workspace: Path) -> None:
    good, bad = workspace / "good.yaml", workspace / "bad.yaml"
    good.write_text((workspace / "my.yaml").read_text())
    # our own rules do not know this one
    bad.write_text(good.read_text().replace("bf16: true", "bf16: true, predict_with_generate: true"))
    command = [sys.executable, "-m", "cpt_launcher", "validate", "--strict"]
    done = subprocess.run([*command, str(good)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")
    done = subprocess.run([*command, str(bad)], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert f"{bad}:8:38: error[strict]: `predict_with_generate` cannot be set as True except SFT." in done.stdout


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (("job", "my.yaml", "storage=/mnt/user_storage", "--out", ""), "--out is empty"),
        (("job", "my.yaml", "storage=/mnt/user_storage", "--out="), "--out is empty"),
        (("stage-data", "--storage", ""), "--storage is empty"),
        (("stage-data", "my.yaml", "--tokenizer", " "), "--tokenizer is empty"),
        (("stage-data", ""), "an argument is empty"),
        (("export", "first", "--to", ""), "--to is empty"),
        (("runs", "--storage", ""), "--storage is empty"),
        (("doctor", "--storage", ""), "--storage is empty"),
        (("ui", "--storage="), "--storage is empty"),
        (("status", ""), "an argument is empty"),
        (("demo", "--storage", ""), "--storage is empty"),
        (("run", ""), "an argument is empty"),
        (("plan", ""), "an argument is empty"),
        (("fetch-model", ""), "an argument is empty"),
        (("validate", ""), "an argument is empty"),
        (("validate", "my.yaml", ""), "an argument is empty"),
        (("configs", "copy", "tiny_cpu.yaml", ""), "an argument is empty"),
    ],
)
def test_an_empty_argument_is_no_path(cpt: Cpt, workspace: Path, arguments: tuple[str, ...], what: str) -> None:
    before = sorted(workspace.rglob("*"))
    done = cpt(*arguments)
    assert (done.code, what in done.err) == (2, True), done.err
    assert sorted(workspace.rglob("*")) == before


@pytest.mark.parametrize(
    "arguments",
    [
        ("validate",), ("run",), ("plan",), ("status",), ("logs",), ("checkpoints",), ("export", "--to"), ("eval",),
        ("runs", "--storage"), ("ui", "--storage"), ("doctor", "--storage"), ("demo", "--storage"),
        ("stage-data", "--storage"), ("stage-data", "my.yaml", "--tokenizer"), ("configs", "copy", "tiny_cpu.yaml"),
        ("job", "my.yaml", "storage=/mnt/user_storage", "--out"),
    ],
)  # fmt: skip
def test_no_path_is_that_long(cpt: Cpt, workspace: Path, arguments: tuple[str, ...]) -> None:
    for path in ("a" * 256, "ä" * 200, "a/" * 3000):
        done = cpt(*arguments, path)
        assert (done.code, " is too long: " in done.err) == (2, True), done.err
    assert cpt("validate", "my.yaml", "train.run_name=" + "a" * 300).code == 0


def test_what_a_command_needs_is_not_to_be_left_out(cpt: Cpt, workspace: Path) -> None:
    assert "Give it a value\n" in cpt("export", "first", "--to", "").err
    assert "Give it a value, or leave it out\n" in cpt("runs", "--storage", "").err


def test_a_config_that_is_not_there_is_named_as_typed(cpt: Cpt, workspace: Path) -> None:
    done = cpt("run", "mi.yaml")
    assert (done.code, done.err.splitlines()) == (2, [
        "error: there is no file mi.yaml", "  where: mi.yaml", "  next:  did you mean my.yaml?",
    ])  # fmt: skip
    assert "see `cpt configs list`" in cpt("run", "nothing_like_it.yaml").err


def test_a_wrong_choice_of_an_option_without_the_library_s_words(cpt: Cpt, workspace: Path) -> None:
    done = cpt("export", "first", "--to", "x", "--dtype", "bf61")
    assert done.err.startswith("error: invalid value for '--dtype': 'bf61' is not one of ")


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("eval=0.2", "eval must be a mapping, not 0.2 (eval: {share: 0.01} holds"),
        ("resources=", "'resources' is missing (resources: {gpus: 4}, or resources: {cpus: 2} "),
        ("resources={}", "resources names neither gpus nor cpus (resources: {gpus: 4}, "),
        ("train.max_steps=-3", "max_steps must be -1 or more, not -3 (without"),
        ("train.save_steps=0", "save_steps must be more than 0, not 0 (without"),
        ("train.adam_beta1=1", "adam_beta1 must be from 0 to below 1, not 1 (without"),
        ("train.stage=sft", "(leave it out: this launcher does continued pre-training alone (stage: pt))"),
        ("name=models", "name 'models' cannot be a run's folder: cpt keeps something else under that name"),
    ],
)
def test_what_is_wrong_is_said_plainly(cpt: Cpt, workspace: Path, override: str, said: str) -> None:
    done = cpt("validate", "my.yaml", override)
    assert (done.code, said in done.out) == (2, True), done.out


def test_an_empty_value_of_an_override_is_none(cpt: Cpt, workspace: Path) -> None:
    assert cpt("validate", "my.yaml", "train.run_name=").code == 0
    assert "'storage' is missing" in cpt("validate", "my.yaml", "storage=").out


def test_a_folder_of_shards_is_one_line(cpt: Cpt, workspace: Path) -> None:
    folder, storage = workspace / "shards", workspace / "storage"
    folder.mkdir()
    for number in range(300):
        (folder / f"{number:03}.jsonl").write_text('{"text": "Call me Ishmael."}\n' * 2)
    entry = {"corpus": {"source": "../shards", "columns": {"prompt": "text"}}}
    (workspace / "dataset-configs" / "dataset_info.json").write_text(json.dumps(entry))
    first = cpt("stage-data", "my.yaml", "--json")
    counts = "(300 files, 600 documents, about 3,000 tokens)"
    assert first.err.splitlines()[0] == f"cpt: created   {storage}/shards {counts}"
    assert len(first.err.splitlines()) == 3
    each = [item for item in json.loads(first.out)["staged"] if "/shards/" in item["path"]]
    assert (len(each), {item["documents"] for item in each}) == (300, {2})
    assert f"cpt: identical {storage}/shards {counts}\n" in cpt("stage-data", "my.yaml").err
    (folder / "000.jsonl").write_text('{"text": "one"}\n')
    (folder / "001.jsonl").unlink()
    said = cpt("stage-data", "my.yaml").err
    assert f"cpt: staged    {storage}/shards (299 files: 298 identical, 1 replaced, 597 documents" in said
    assert f"cpt: removed   {storage}/shards (1 file)\n" in said


def test_files_that_were_staged_are_said_where_a_later_one_fails(cpt: Cpt, workspace: Path) -> None:
    folder = workspace / "shards"
    folder.mkdir()
    for name, text in (("a", '{"text": "one"}\n'), ("b", "x\n")):
        (folder / f"{name}.jsonl").write_text(text)
    entry = {"corpus": {"source": "../shards", "columns": {"prompt": "text"}}}
    (workspace / "dataset-configs" / "dataset_info.json").write_text(json.dumps(entry))
    done = cpt("stage-data", "my.yaml")
    assert (done.code, "/shards (1 file, 1 document, about 1 token)\n" in done.err) == (3, True), done.err


def test_staging_takes_overrides(cpt: Cpt, workspace: Path) -> None:
    other = workspace / "other"
    other.mkdir()
    done = cpt("stage-data", "my.yaml", f"storage={other}", "name=second")
    assert (done.code, f"created   {other}/corpus.jsonl (100 documents" in done.err) == (0, True), done.err
    done = cpt("stage-data", "my.yaml", "dataset=nothing")
    assert (done.code, "no dataset 'nothing' is registered" in done.err) == (2, True), done.err
    done = cpt("stage-data", "my.yaml", f"storage={other}", "--storage", workspace / "storage")
    assert f"created   {workspace}/storage/corpus.jsonl" in done.err, done.err


def test_a_wrong_deepspeed_name_is_answered_with_deepspeed_files(cpt: Cpt, workspace: Path) -> None:
    (workspace / "docs.json").write_text('[{"text": "one"}]')
    (workspace / "mine.json").write_text('{"zero_optimization": {"stage": 2}}')
    done = cpt("run", "my.yaml", "deepspeed=ds_z9.json", "--dry-run")
    [hint] = [line for line in done.err.splitlines() if "there are" in line]
    assert ("docs.json" in hint, "mine.json" in hint, "ds_z3_config.json" in hint) == (False, True, True), hint


@pytest.mark.parametrize(
    ("fields", "severity", "hint"),
    [
        ({"source": "/absent/c.jsonl"}, "error", "put it there, or correct the path: it is read where the data is"),
        ({"file_name": "/absent/c.jsonl"}, "warning", ""),
        ({"file_name": "absent.jsonl"}, "error", "a path is relative to the registry's folder"),
    ],
)
def test_data_that_is_not_there(cpt: Cpt, workspace: Path, fields: dict[str, object], severity: str, hint: str) -> None:
    entry = {"corpus": {**fields, "columns": {"prompt": "text"}}}
    (workspace / "dataset-configs" / "dataset_info.json").write_text(json.dumps(entry))
    said = cpt("validate", "my.yaml").out
    assert f"{severity}[registry-file]: the data of 'corpus' is not there" in said
    assert hint in said
    assert ("relative to" in said) is ("relative to" in hint)


@pytest.mark.parametrize("start", [["-m", "cpt_launcher"], ["-c", "from cpt_launcher.__main__ import main; main()"]])
def test_ctrl_c_during_import_is_quiet(tmp_path: Path, start: list[str]) -> None:
    heard = "signal.signal(signal.SIGINT, signal.default_int_handler)"  # as from a terminal
    slow = f"import signal, time\n{heard}\nprint('importing', flush=True)\ntime.sleep(60)\n"
    (tmp_path / "typer.py").write_text(slow)
    env = {**os.environ, "PYTHONPATH": str(tmp_path)}
    command = [sys.executable, *start, "--version"]
    with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None
        assert running.stdout.readline() == "importing\n"
        running.send_signal(signal.SIGINT)
        assert running.communicate(timeout=30) == ("", "")
    assert running.returncode == 130
