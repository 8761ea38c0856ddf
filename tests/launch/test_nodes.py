from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from cpt_launcher.launch import nodes
from cpt_launcher.launch.nodes import Cluster, Node
from cpt_launcher.layout import Layout
from cpt_launcher.plan.plan import Plan

HAVE = dict.fromkeys(nodes.MUST_HAVE, "1")


def plan(workers: int = 4, device: str = "gpu", model: str = "some/model", **train: object) -> Plan:
    layout = Layout(Path("/s"), "r")
    env = {"HF_HUB_ENABLE_HF_TRANSFER": "1"}
    return Plan(Path("c.yaml"), layout, yaml.safe_dump(train), (), env, model, workers, device, None)


def node(host: str = "a", *, gpus: float = 4, **facts: object) -> Node:
    resources = {"CPU": 8.0, "GPU": gpus, "accelerator_type:L40S": 1.0, "memory": 1e9, "node:a": 1.0}
    given = {"versions": HAVE, "launcher": True, "hf_transfer": True, "resources": resources, **facts}
    return Node(host, **given)  # type: ignore[arg-type]


def found(plan: Plan, *given: Node) -> dict[str, str]:
    return {name: f"{item.what} | {item.hint}" for name, item in nodes.problems(plan, there(*given))}


def there(*given: Node, available: dict[str, float] | None = None) -> Cluster:
    return Cluster("192.0.2.1:6379", given, available or {}, HAVE)


@pytest.mark.parametrize(
    ("asked", "gpus"),
    [
        ({}, [4]),
        ({"resources_per_worker": {"GPU": 1, "accelerator_type:L40S": 0.001}}, [4]),
        ({"placement_strategy": "STRICT_PACK"}, [2, 4]),
        ({"placement_strategy": "STRICT_SPREAD"}, [1, 1, 1, 1]),
        ({"placement_strategy": "PACK"}, [2, 2]),
        ({"placement_strategy": "SPREAD"}, [3, 1]),
    ],
)
def test_workers_that_fit(asked: dict[str, object], gpus: list[int]) -> None:
    assert found(plan(**asked), *(node(gpus=count) for count in gpus)) == {}


@pytest.mark.parametrize(
    ("asked", "gpus", "said"),
    [
        ({}, [2, 1], "4 workers of GPU 1 do not fit; Ray"),
        ({"placement_strategy": "STRICT_PACK"}, [2, 2], "do not fit on one node; Ray"),
        ({"placement_strategy": "STRICT_SPREAD"}, [8], "do not fit on a node each; Ray"),
        ({"resources_per_worker": {"accelerator_type:H100": 0.001}}, [4], "no node offers accelerator_type:H100; Ray"),
        ({"resources_per_worker": {"gpu": 1}}, [4], "no node offers gpu; Ray"),
    ],
)
def test_workers_that_ray_would_wait_for(asked: dict[str, object], gpus: list[int], said: str) -> None:
    text = found(plan(**asked), *(node(gpus=count) for count in gpus))["resources"]
    assert said in text
    assert f"the cluster has a: CPU 8, GPU {gpus[0]}, accelerator_type:L40S 1" in text


def test_cpu_workers_ask_for_no_gpu() -> None:
    asked = {"resources_per_worker": {"CPU": 1}}
    assert found(plan(8, "cpu", **asked), node(gpus=0)) == {}
    assert "9 workers of CPU 1 do not fit" in found(plan(9, "cpu", **asked), node(gpus=0))["resources"]


def test_what_others_hold_is_only_worth_a_word() -> None:
    free = {"GPU": 1.0, "CPU": 8.0}
    assert nodes.warnings(plan(), there(node(), available=free)) == [
        "the cluster is in use: 1 of 4 GPU free; the run waits until the rest is"
    ]
    assert nodes.warnings(plan(), there(node(), available={"GPU": 4.0})) == []


def test_what_a_node_lacks() -> None:
    versions = {**HAVE, "torch": "2"}
    del versions["deepspeed"]
    bad = node(
        "b", storage_error="No such file or directory", model=False, hf_transfer=False, versions=versions, gpus=0
    )
    said = found(plan(ray_init_kwargs={"num_cpus": 4}), node(), bad, node("c", shared=False))
    assert list(said) == [
        "resources", "storage-on-workers", "model-on-workers", "versions", "hf_transfer-on-workers", "ray-init"
    ][1:]  # fmt: skip
    assert "not on b" in said["model-on-workers"]
    assert "b: not installed: deepspeed; torch is 2 there and 1 here" in said["versions"]
    assert "the storage on c is not the one here" in said["storage-on-workers"]
    assert "num_cpus" in said["ray-init"]
    first = nodes.problems(plan(), there(node(), bad))[0][1].what
    assert first == "a worker on b cannot write to the storage: No such file or directory"
    assert "a could not be asked: it died" in found(plan(), node(error="it died"))["versions"]
    assert nodes.has_launcher(there(node(), node("d", launcher=False))) == ["d"]
