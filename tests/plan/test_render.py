from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from cpt_launcher.config import read
from cpt_launcher.config.launcher import Resources, RunConfig
from cpt_launcher.errors import ConfigError
from cpt_launcher.layout import Layout
from cpt_launcher.plan.plan import plan_run
from cpt_launcher.plan.render import ray_resources, render

from ..conftest import REPOSITORY, Outcome

Cpt = Callable[..., Outcome]

# The published recipe, its two secrets left out: value for value, but for output_dir, which is absolute here.
GUIDE = {
    "model_name_or_path": "google/gemma-3-4b-pt",
    "trust_remote_code": True,
    "stage": "pt",
    "do_train": True,
    "finetuning_type": "full",
    "deepspeed": "/mnt/cluster_storage/ds_z3_config.json",
    "dataset": "my_cpt_c4",
    "dataset_dir": "/mnt/cluster_storage",
    "template": "gemma",
    "cutoff_len": 512,
    "max_samples": 1000,
    "overwrite_cache": True,
    "preprocessing_num_workers": 16,
    "output_dir": "/mnt/cluster_storage/gemma3_4b_full_cpt/output",
    "logging_steps": 2,
    "save_steps": 50,
    "plot_loss": True,
    "report_to": "mlflow",
    "per_device_train_batch_size": 1,
    "gradient_accumulation_steps": 2,
    "num_train_epochs": 2.0,
    "learning_rate": 1.0e-4,
    "bf16": True,
    "lr_scheduler_type": "cosine",
    "warmup_ratio": 0.1,
    "ddp_timeout": 180000000,
    "ray_run_name": "gemma3_4b_full_cpt",
    "ray_storage_path": "/mnt/cluster_storage/",
    "ray_num_workers": 4,
    "resources_per_worker": {"GPU": 1, "anyscale/accelerator_shape:4xL40S": 0.001},
    "ray_init_kwargs": {
        "runtime_env": {
            "env_vars": {
                "HF_HUB_ENABLE_HF_TRANSFER": "1",
                "MLFLOW_TRACKING_URI": "https://<your_cloud_id>.cloud.databricks.com",
                "MLFLOW_EXPERIMENT_NAME": "/Users/<your_user_id>/experiment_name",
            }
        }
    },
}
TRACKING = [
    "tracking.mlflow.uri=https://<your_cloud_id>.cloud.databricks.com",
    "tracking.mlflow.experiment=/Users/<your_user_id>/experiment_name",
]


def gemma(*overrides: str) -> str:
    config = read.read(REPOSITORY / "configs" / "gemma3_4b.yaml", [*TRACKING, *overrides], {})
    return plan_run(config, {}).train_yaml


def test_gemma3_4b_on_anyscale_is_the_guides_recipe() -> None:
    rendered = gemma("resources.cluster=anyscale")
    assert yaml.safe_load(rendered) == GUIDE
    # in the guide's order and under its headings
    assert list(yaml.safe_load(rendered)) == list(GUIDE)
    headings = [line for line in rendered.splitlines() if line.startswith("###")]
    assert headings == [f"### {name}" for name in ("model", "method", "deepspeed", "dataset", "output", "train", "ray")]


def test_gemma3_4b_on_plain_ray_asks_in_rays_words() -> None:
    resources = {"GPU": 1, "accelerator_type:L40S": 0.001}
    expected = {**GUIDE, "resources_per_worker": resources, "placement_strategy": "STRICT_PACK"}
    expected["ray_init_kwargs"] = {"include_dashboard": False, **GUIDE["ray_init_kwargs"]}
    assert yaml.safe_load(gemma("resources.cluster=ray")) == expected


def test_anyscale_is_recognised_by_its_environment() -> None:
    config = read.read(REPOSITORY / "configs" / "gemma3_4b.yaml", TRACKING, {})
    assert yaml.safe_load(plan_run(config, {"ANYSCALE_CLUSTER_ID": "ses_1"}).train_yaml) == GUIDE


@pytest.mark.parametrize(
    ("resources", "anyscale", "expected"),
    [
        (Resources(2, "cpu"), False, ({"CPU": 1}, None)),
        (Resources(1, "gpu"), False, ({"GPU": 1}, None)),
        (Resources(4, "gpu"), False, ({"GPU": 1}, "STRICT_PACK")),
        (Resources(4, "gpu"), True, ({"GPU": 1}, "STRICT_PACK")),
        (Resources(4, "gpu", "A100", same_node=False), False, ({"GPU": 1, "accelerator_type:A100": 0.001}, None)),
        (Resources(4, "gpu", "L4", same_node=False), True, ({"GPU": 1, "accelerator_type:L4": 0.001}, None)),
    ],
)
def test_ray_resources(resources: Resources, anyscale: bool, expected: object) -> None:
    assert ray_resources(resources, anyscale=anyscale) == expected


def rendered(train: dict[str, object], template: str = "cpt", **given: object) -> str:
    config = RunConfig(Path("x.yaml"), "r", Path("/s"), "m", ("d",), None, Resources(1, "gpu"), template, train=train)
    return render(config, Layout(config.storage, "r"), None, given, anyscale=False)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "evil",
    [
        "x\noutput_dir: /elsewhere",
        "{{ 7 * 7 }}",
        "{% raw %}",
        "'\"",
        "no",
        "1e-5",
        "# not a comment",
        "a: b",
        "\u2028 \x85",
    ],
)
def test_no_value_can_break_out(evil: str) -> None:
    parsed = yaml.safe_load(rendered({"template": evil, "run_name": evil}, KEY=evil))
    assert (parsed["template"], parsed["run_name"], parsed["output_dir"]) == (evil, evil, "/s/r/output")
    assert parsed["ray_init_kwargs"]["runtime_env"]["env_vars"] == {"KEY": evil}


def test_every_train_argument_is_rendered_once() -> None:
    train = {"save_total_limit": 2, "cutoff_len": 8, "trust_remote_code": False, "logging_steps": 1, "seed": 1e-05}
    text = rendered(train)
    assert {key: yaml.safe_load(text)[key] for key in train} == train
    assert all(text.count(f"\n{key}:") == 1 for key in train)


def test_templates_of_ones_own(tmp_path: Path) -> None:
    own = tmp_path / "own.j2"
    own.write_text('{{ entry("model", model) }}')
    assert rendered({}, str(own)) == "model: m\n"
    for broken in ("{{ absent }}", "{% if %}", "- a", "a: [", "{{ 1 / 0 }}"):
        own.write_text(broken)
        with pytest.raises(ConfigError):
            rendered({}, str(own))
    with pytest.raises(ConfigError, match="there is no template 'nope'"):
        rendered({}, "nope")


POPEN = "{{ cycler.__init__.__globals__.os.popen('touch pwned').read() }}"


@pytest.mark.parametrize(
    "attack",
    [
        POPEN,
        "{{ entry.__globals__ }}",
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ self.__init__.__globals__ }}",
        "{{ train.update({}) }}",
        "{{ train['__class__'] }}",
        "{{ '{0.__class__}'.format(entry) }}",
        "{% set f = 'format' %}{{ ''|attr('__class__') }}",
    ],
)
def test_a_template_reaches_nothing(tmp_path: Path, attack: str) -> None:
    own = tmp_path / "own.j2"
    own.write_text(f"a: 1\n# {attack}\n")
    with pytest.raises(ConfigError, match="the template does what it may not") as caught:
        rendered({"a": 1}, str(own))
    assert caught.value.problems[0].where == f"{own}:2:1"


@pytest.mark.parametrize(
    "command",
    [("run", "my.yaml", "--dry-run"), ("plan", "my.yaml"), ("stage-data", "my.yaml"), ("tokenize", "my.yaml")],
)
def test_no_command_runs_a_template_s_code(cpt: Cpt, workspace: Path, command: tuple[str, ...]) -> None:
    (workspace / "own.yaml.j2").write_text(POPEN)
    with (workspace / "my.yaml").open("a") as file:
        file.write("template: own.yaml.j2\n")
    done = cpt(*command)
    assert (done.code, "the template does what it may not" in done.err) == (2, True)
    assert not (workspace / "pwned").exists()


@pytest.mark.parametrize(
    "bomb",
    [
        "{% for i in range(10**9) %}x{% endfor %}",
        "{% for i in range(9999) %}{% for j in range(9999) %}{% endfor %}{% endfor %}",
        "{% for i in range(1001) %}{{ 'a' * 1000 }}{% endfor %}",
        "{{ 'a' * 10**9 }}",
        "{{ 10 ** 10 ** 10 ** 10 }}",
        "{% set n = namespace(x=9) %}{% for i in range(99) %}{% set n.x = n.x * n.x %}{% endfor %}{{ n.x }}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "a: &a {x: 1}\nb: {<<: [" + "*a, " * 60_000 + "*a]}",
    ],
)
def test_a_template_comes_to_an_end(tmp_path: Path, bomb: str) -> None:
    own = tmp_path / "own.j2"
    own.write_text(bomb)
    with pytest.raises(ConfigError, match="the template failed"):
        rendered({}, str(own))


def test_a_template_may_compute(tmp_path: Path) -> None:
    own = tmp_path / "own.j2"
    own.write_text("a: {{ 2 ** 10 * 3 }}\nb: {{ '-' * 3 }}\n{% for i in range(3) %}c{{ i }}: {{ i }}\n{% endfor %}")
    assert rendered({}, str(own)) == "a: 3072\nb: ---\nc0: 0\nc1: 1\nc2: 2\n"


def test_a_template_that_is_no_text(tmp_path: Path) -> None:
    own = tmp_path / "own.j2"
    own.write_bytes(b"\xff\xfe")
    for name in (str(own), "nul\0.j2", "x" * 300 + ".j2"):
        with pytest.raises(ConfigError, match=r"not UTF-8|there is no template"):
            rendered({}, name)
