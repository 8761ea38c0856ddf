from pathlib import Path

import pytest

from cpt_launcher.config import document, read
from cpt_launcher.config.launcher import Mlflow, PlainConfig, Resources, RunConfig
from cpt_launcher.errors import ConfigError

COMPLETE = "name: r\nstorage: /s\nmodel: a/b\ndataset: d\nresources: {gpus: 1}\n"


def parse(text: str, *overrides: str, **environ: str) -> RunConfig | PlainConfig:
    return read.parse(document.parse(text, Path("x.yaml")), overrides, environ)


def problems(text: str, *overrides: str) -> list[tuple[str, str]]:
    with pytest.raises(ConfigError) as caught:
        parse(text, *overrides)
    return [(problem.what, problem.where) for problem in caught.value.problems]


def test_a_complete_config() -> None:
    text = (
        "name: r\nstorage: ${WHERE}/s\nmodel: google/gemma-3-4b-pt\ndataset: [a, b]\ndeepspeed: z.json\n"
        "resources: {gpus: 4, accelerator: L40S}\nsecrets: [HF_TOKEN]\nenv: {A: '1'}\n"
        "tracking: {mlflow: {uri: 'https://x', experiment: e}}\ntrain: {learning_rate: 1e-4}\n"
    )
    assert parse(text, WHERE="/mnt") == RunConfig(
        path=Path("x.yaml"),
        name="r",
        storage=Path("/mnt/s"),
        model="google/gemma-3-4b-pt",
        datasets=("a", "b"),
        deepspeed="z.json",
        resources=Resources(4, "gpu", "L40S"),
        secrets=("HF_TOKEN",),
        env={"A": "1"},
        mlflow=Mlflow("https://x", "e"),
        train={"learning_rate": 1e-4},
    )


def test_none_and_relative_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = parse("name: r\nstorage: s\nmodel: ./m\ndataset: d\ndeepspeed: none\ntracking: none\nresources: {cpus: 2}")
    assert isinstance(config, RunConfig)
    assert (config.storage, config.model) == (tmp_path / "s", str(tmp_path / "m"))
    assert (config.deepspeed, config.mlflow, config.resources) == (None, None, Resources(2, "cpu"))


def test_every_problem_in_one_go() -> None:
    text = "nmae: r\nstorage: ${NOT_SET}\nmodel: 3\ndataset: []\nresources: {gpus: 1, cpus: 1, acelerator: L4}\n"
    assert problems(text + "env: {HF_TOKEN: hf_x, N: 1}\nsecrets: [A B]\ntrain: {output_dir: /o}\ncutoff_len: 1\n") == [
        ("unknown key 'cutoff_len'", "x.yaml:9:1"),
        ("unknown key 'nmae'", "x.yaml:1:1"),
        ("storage names ${NOT_SET}, which is not set", "x.yaml:2:1"),
        ("model must be text, not 3", "x.yaml:3:1"),
        ("'dataset' must name one or more registry entries", "x.yaml:4:1"),
        ("unknown key 'resources.acelerator'", "x.yaml:5:31"),
        ("resources needs either gpus or cpus, not gpus: 1, cpus: 1", "x.yaml:5:1"),
        ("secrets are names of environment variables, in capitals", "x.yaml:7:1"),
        ("env.N must be text", "x.yaml:6:23"),
        ("train.output_dir is written by the launcher", "x.yaml:8:9"),
        ("env.HF_TOKEN looks like a secret, and a file is no place for one", "x.yaml:6:7"),
    ]


@pytest.mark.parametrize("name", ["../up", "a/b", "models", "-x", "a b", "dataset_info.json", "mlflow.db", "a.jsonl"])
def test_a_name_is_one_folder(name: str) -> None:
    [(what, _)] = problems(COMPLETE, f"name={name}")
    assert "cannot be a run's folder" in what


@pytest.mark.parametrize("text", ["/" + "a" * 300, "/a" * 2500])
def test_what_cannot_be_a_path(text: str) -> None:
    assert [what for what, _ in problems(COMPLETE, f"storage={text}")] == ["storage cannot be a path"]


def test_overrides_are_yaml_and_dotted() -> None:
    config = parse(COMPLETE, "train.cutoff_len=2048", "train.learning_rate=1e-5", "name=other", "resources={cpus: 2}")
    assert isinstance(config, RunConfig)
    assert config.train == {"cutoff_len": 2048, "learning_rate": 1e-5}
    assert (config.name, config.resources) == ("other", Resources(2, "cpu"))


@pytest.mark.parametrize(("override", "what"), [("x", "is not key=value"), ("name.x=1", "goes through a value")])
def test_a_bad_override(override: str, what: str) -> None:
    [(said, where)] = problems(COMPLETE, override)
    assert what in said
    assert where == "command line"


PLAIN = "# mine\nstage: pt\nray_run_name: p\nray_storage_path: /s\nresources_per_worker: {GPU: 1}\n"


def test_a_llamafactory_yaml_is_taken_as_it_is() -> None:
    config = parse(PLAIN)
    assert isinstance(config, PlainConfig)
    assert (config.text, config.name, config.storage) == (PLAIN, "p", Path("/s"))


def test_a_llamafactory_yaml_with_overrides() -> None:
    config = parse(PLAIN, "learning_rate=1e-5")
    assert isinstance(config, PlainConfig)
    assert document.parse(config.text, Path("y")).value == {**config.values, "learning_rate": 1e-5}


def test_a_secret_in_a_llamafactory_yaml_is_refused() -> None:
    text = PLAIN + "ray_init_kwargs: {runtime_env: {env_vars: {HF_TOKEN: hf_abc, A: b}}}\n"
    what = "ray_init_kwargs.runtime_env.env_vars.HF_TOKEN looks like a secret, and a file is no place for one"
    assert problems(text) == [(what, "x.yaml:6:44")]


@pytest.mark.parametrize("text", ["", "- a", "just text"])
def test_not_a_mapping(text: str) -> None:
    assert problems(text) == [("a config is a mapping of keys to values", "x.yaml")]


def test_a_plain_configs_run_name_is_not_one_of_the_storages_own() -> None:
    for name in ("models", "a.jsonl", "dataset_info.json"):
        with pytest.raises(ConfigError, match="cannot be a run's folder"):
            parse(PLAIN.replace("ray_run_name: p", f"ray_run_name: {name}"))
