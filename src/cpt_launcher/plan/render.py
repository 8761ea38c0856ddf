"""A launcher config to the LLaMA-Factory training YAML, through a Jinja2 template."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from cpt_launcher import shipped
from cpt_launcher.config import document
from cpt_launcher.config.launcher import Resources, RunConfig
from cpt_launcher.errors import ConfigError, Problem
from cpt_launcher.layout import Layout


def render(
    config: RunConfig, layout: Layout, deepspeed: Path | None, env_vars: Mapping[str, str], *, anyscale: bool
) -> str:
    """The training YAML of a run.

    Args:
        deepspeed: the DeepSpeed JSON on the storage, or None for plain data parallelism.
        env_vars: settings (never secrets) that every Ray worker gets.
        anyscale: write the resources as Anyscale's node shapes instead of plain Ray's.

    Raises:
        ConfigError: an unknown template, or one that fails or does not yield a mapping.
    """
    labels, placement = ray_resources(config.resources, anyscale=anyscale)
    values = {
        "model": config.model,
        "deepspeed": str(deepspeed) if deepspeed else None,
        "dataset": ",".join(config.datasets),
        "dataset_dir": str(layout.storage),
        "output_dir": str(layout.output),
        "report_to": "mlflow" if config.mlflow else "none",
        "train": config.train,
        "ray_run_name": layout.run,
        "ray_storage_path": f"{layout.storage}/",
        "ray_num_workers": config.resources.workers,
        "resources_per_worker": labels,
        "placement_strategy": placement,
        "env_vars": dict(env_vars),
        # Where a run starts Ray itself, its dashboard has no login; on a cluster the setting does nothing.
        "ray_settings": {} if anyscale else {"include_dashboard": False},
    }
    return _fill(config.template, values)


def ray_resources(resources: Resources, *, anyscale: bool) -> tuple[dict[str, object], str | None]:
    """What each Ray worker asks for, and the placement strategy where the default (PACK) is not enough.

    Anyscale picks a whole node by its shape, `anyscale/accelerator_shape:4xL40S`. Plain Ray knows no such
    label and would wait for it for ever: there STRICT_PACK keeps the workers on one node, and
    `accelerator_type:L40S` (https://docs.ray.io/en/latest/ray-core/accelerator-types.html) names the card. On several
    nodes PACK fills one after the other; with one worker each, STRICT_SPREAD keeps them apart.
    """
    each = resources.workers // resources.nodes
    apart = "STRICT_SPREAD" if resources.nodes > 1 and each == 1 else None
    if resources.device == "cpu":
        return {"CPU": 1}, apart
    wanted: dict[str, object] = {"GPU": 1}
    shape = anyscale and resources.accelerator is not None and (resources.same_node or resources.nodes > 1)
    if shape:
        wanted[f"anyscale/accelerator_shape:{each}x{resources.accelerator}"] = 0.001
    elif resources.accelerator:
        wanted[f"accelerator_type:{resources.accelerator}"] = 0.001
    packed = resources.same_node and not shape and resources.workers > 1
    return wanted, "STRICT_PACK" if packed else apart


def _fill(name: str, values: Mapping[str, object]) -> str:
    import jinja2  # not at the top: only a plan renders, and `cpt --help` is to be instant

    from cpt_launcher.plan.sandbox import Sandbox

    path = shipped.template(name)
    try:
        source = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise ConfigError(Problem("the template is not UTF-8 text", str(path), "", "launcher-template")) from None
    except (OSError, ValueError):  # a null byte in the name
        hint = "template: cpt, or the path of a .j2 file of yours"
        raise ConfigError(Problem(f"there is no template '{name}'", str(path), hint, "launcher-template")) from None
    environment = Sandbox()
    environment.globals["entry"] = lambda key, value: document.dump({key: value})
    try:
        text = environment.fill(source, values)
        parsed = document.parse(text, path, yaml11=True).value
    except jinja2.exceptions.SecurityError as error:
        hint = "a template puts values into text; it cannot reach anything else"
        what = f"the template does what it may not: {error}"
        raise ConfigError(Problem(what, _line(error, path), hint, "launcher-template")) from None
    except ConfigError as error:
        what = f"the template failed: {error.problems[0].what}"
        raise ConfigError(Problem(what, str(path), "what it makes must be YAML", "launcher-template")) from None
    except (jinja2.TemplateError, TypeError, ValueError, ArithmeticError, RecursionError, MemoryError) as error:
        what = f"the template failed: {error or type(error).__name__}"
        raise ConfigError(Problem(what, _line(error, path), rule="launcher-template")) from None
    if not isinstance(parsed, dict):
        raise ConfigError(
            Problem("the template does not make a mapping of arguments", str(path), rule="launcher-template")
        )
    return text


def _line(error: BaseException, path: Path) -> str:
    """The place in the template where it failed, as far as it is known."""
    line = getattr(error, "lineno", None)  # a syntax error
    step = error.__traceback__
    while step is not None:
        line = step.tb_lineno if step.tb_frame.f_code.co_filename == "<template>" else line
        step = step.tb_next
    return f"{path}:{line}:1" if line else str(path)
