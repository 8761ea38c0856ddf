"""What the nodes of a Ray cluster have, and what they lack for a run."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from cpt_launcher.errors import Problem
from cpt_launcher.plan.plan import Plan
from cpt_launcher.wording import counted

MUST_HAVE = ("llamafactory", "deepspeed", "transformers", "torch")


@dataclass(frozen=True)
class Node:
    """A living node. `resources` are Ray's, with totals; `storage_error` is empty where it may write there; `shared`
    where it sees what the launcher wrote. `error`: why it could not be asked.
    """

    host: str
    resources: Mapping[str, float] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    launcher: bool = False
    hf_transfer: bool = False
    model: bool = True
    storage_error: str = ""
    shared: bool = True
    free: int | None = None
    error: str = ""


@dataclass(frozen=True)
class Cluster:
    """Where it is, its nodes, what is not held by others, and the launcher's own versions."""

    address: str
    nodes: tuple[Node, ...] = ()
    available: Mapping[str, float] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)


def read(facts: Mapping[str, object]) -> Cluster:
    """A probe's JSON."""
    nodes, available, versions = facts["nodes"], facts["available"], facts["versions"]
    assert isinstance(nodes, list)
    assert isinstance(available, dict)
    assert isinstance(versions, dict)
    return Cluster(str(facts["address"]), tuple(Node(**node) for node in nodes), available, versions)


def describe(cluster: Cluster) -> list[str]:
    """A line per node."""
    return [f"{node.host}: {node.error or _offer(node.resources)}" for node in cluster.nodes]


def has_launcher(cluster: Cluster) -> list[str]:
    """Hosts without this package."""
    return [node.host for node in cluster.nodes if not node.launcher]


def problems(plan: Plan, cluster: Cluster) -> list[tuple[str, Problem]]:
    """What keeps the run from succeeding there, with the name of the check that found it."""
    return [(name, found) for name, one in _CHECKS.items() for found in one(plan, cluster)]


def warnings(plan: Plan, cluster: Cluster) -> list[str]:
    """What makes it wait."""
    wanted = _bundle(plan)
    short = [name for name, amount in wanted.items() if cluster.available.get(name, 0) < plan.workers * amount]
    if not short or _resources(plan, cluster):
        return []
    held = ", ".join(f"{cluster.available.get(name, 0):g} of {plan.workers * wanted[name]:g} {name}" for name in short)
    return [f"the cluster is in use: {held} free; the run waits until the rest is"]


def _resources(plan: Plan, cluster: Cluster) -> list[Problem]:
    """Ray waits for ever for what no node offers, and says nothing where it is a label (Ray 2.48, Tune's
    insufficient_resources_manager.py looks at CPUs and GPUs only).
    """
    wanted, strategy = _bundle(plan), plan.train.get("placement_strategy", "PACK")
    room = [_room(node.resources, wanted) for node in cluster.nodes if not node.error]
    if strategy == "STRICT_SPREAD":
        fits = sum(count > 0 for count in room) >= plan.workers
    else:
        fits = (max(room, default=0) if strategy == "STRICT_PACK" else sum(room)) >= plan.workers
    if fits:
        return []
    absent = [name for name in wanted if not any(node.resources.get(name) for node in cluster.nodes)]
    how = " on one node" if strategy == "STRICT_PACK" else " on a node each" if strategy == "STRICT_SPREAD" else ""
    why = f": no node offers {', '.join(absent)}" if absent else ""
    who = f"{counted(plan.workers, 'worker')} of {_offer(wanted)} {'does' if plan.workers == 1 else 'do'}"
    what = f"{who} not fit{how}{why}; Ray would wait for ever"
    hint = f"the cluster has {'; '.join(describe(cluster))}. Set resources: to what it has, or add nodes"
    return [Problem(what, cluster.address, hint)]


def _room(have: Mapping[str, float], wanted: Mapping[str, float]) -> int:
    """How many bundles a node has room for."""
    return min((math.floor(have.get(name, 0) / amount + 1e-9) for name, amount in wanted.items() if amount), default=0)


def _bundle(plan: Plan) -> dict[str, float]:
    """What one worker asks for; LLaMA-Factory always adds a GPU (train/tuner.py, `use_gpu=True`), ours none on CPU."""
    given = plan.train.get("resources_per_worker")
    wanted = {key: float(value) for key, value in given.items()} if isinstance(given, dict) else {}
    return wanted if plan.device == "cpu" else {"GPU": 1.0, **wanted}


def _storage(plan: Plan, cluster: Cluster) -> list[Problem]:
    where = str(plan.layout.storage)
    hint = "mount the same storage on every node, or set storage: to one that is"
    found = [
        Problem(f"a worker on {node.host} cannot write to the storage: {node.storage_error}", where, hint)
        for node in cluster.nodes
        if node.storage_error
    ]
    other = [node.host for node in cluster.nodes if not (node.shared or node.storage_error or node.error)]
    if other:
        what = f"the storage on {', '.join(other)} is not the one here: a file written here does not appear there"
        found.append(Problem(what, where, hint))
    return found


def _model(plan: Plan, cluster: Cluster) -> list[Problem]:
    lacking = [node.host for node in cluster.nodes if not node.model]
    hint = "put it on the shared storage and set model: to that folder (a model of the hub: cpt fetch-model CONFIG)"
    return [Problem(f"the model is not on {', '.join(lacking)}", plan.model, hint)] if lacking else []


def _versions(_: Plan, cluster: Cluster) -> list[Problem]:
    found = []
    for node in cluster.nodes:
        if node.error:
            found.append(
                Problem(
                    f"{node.host} could not be asked: {node.error}", cluster.address, "look at it with `ray status`"
                )
            )
            continue
        missing = [name for name in MUST_HAVE if name not in node.versions]
        other = [
            f"{name} is {node.versions[name]} there and {version} here"
            for name, version in cluster.versions.items()
            if name in node.versions and node.versions[name] != version
        ]
        said = [*([f"not installed: {', '.join(missing)}"] if missing else []), *other]
        if said:
            hint = "install the same on every node: pip install -c pins.txt 'cpt-launcher[train]'"
            found.append(Problem(f"{node.host}: {'; '.join(said)}", cluster.address, hint))
    return found


def _transfer(plan: Plan, cluster: Cluster) -> list[Problem]:
    asked = str(plan.env.get("HF_HUB_ENABLE_HF_TRANSFER", "")).upper() in ("1", "ON", "YES", "TRUE")
    lacking = [node.host for node in cluster.nodes if not (node.hf_transfer or node.error)]
    if plan.model.startswith("/") or not asked or not lacking:
        return []
    what = f"HF_HUB_ENABLE_HF_TRANSFER is set, and hf_transfer is not on {', '.join(lacking)}"
    return [
        Problem(what, cluster.address, "install it there (pip install hf_transfer), or remove the variable from env:")
    ]


def _ray_init(plan: Plan, cluster: Cluster) -> list[Problem]:
    """An error of Ray's when it joins a cluster (ray/_private/worker.py, `init`)."""
    given = plan.train.get("ray_init_kwargs")
    wrong = [name for name in ("num_cpus", "num_gpus") if isinstance(given, dict) and name in given]
    what = f"ray_init_kwargs sets {', '.join(wrong)}, which an existing cluster does not take"
    return [Problem(what, cluster.address, "remove them from ray_init_kwargs")] if wrong else []


_CHECKS: dict[str, Callable[[Plan, Cluster], list[Problem]]] = {
    "resources": _resources,
    "storage-on-workers": _storage,
    "model-on-workers": _model,
    "versions": _versions,
    "hf_transfer-on-workers": _transfer,
    "ray-init": _ray_init,
}
CHECKS = tuple(_CHECKS)


def _offer(resources: Mapping[str, float]) -> str:
    """Resources as a person reads them: CPUs, GPUs and labels, without memory and Ray's own names."""
    kept = {name: amount for name, amount in resources.items() if not name.startswith(("memory", "object_", "node:"))}
    return ", ".join(f"{name} {amount:g}" for name, amount in sorted(kept.items())) or "nothing"
