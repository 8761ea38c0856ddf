"""What runs as a process of its own beside a run, connected to a Ray cluster that is there already.

`python -m cpt_launcher.stack.probe probe` looks at every node, `hold` keeps secrets in the cluster's memory, `drop`
takes them out again. They are processes because Ray connects once per process, and the launcher stays light. Nothing
here imports the launcher: `probe` sends its functions to nodes that may not have it.
"""

from __future__ import annotations

import json
import secrets
import select
import signal
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

NAMESPACE = b"cpt"
PACKAGES = ("llamafactory", "deepspeed", "ray", "torch", "transformers", "accelerate", "datasets", "mlflow")
SECONDS = 60.0  # for a node to answer; a worker process takes a few to start
MARK = ".cpt-probe-"
RENEWED, VALID = 60.0, 900.0  # seconds: how often the holder renews secrets, and how long they count without it


def main() -> int:
    """One of the three, its input on stdin, its result as a line of JSON on stdout."""
    task = sys.argv[1]
    if task == "probe":
        _say(probe(json.load(sys.stdin)))
    elif task == "hold":
        hold(json.loads(sys.stdin.readline()))
    else:
        _client().internal_kv_del(sys.stdin.readline().strip().encode(), False, NAMESPACE)
    return 0


def probe(request: Mapping[str, str]) -> dict[str, Any]:
    """Every living node: what it offers, what is installed, whether it sees the storage and the model.

    Args:
        request: `storage` and `model`, folders to look for; empty to look for none.
    """
    import ray

    ray.init(address="auto", log_to_driver=False, logging_level="ERROR", configure_logging=False)
    alive = [node for node in ray.nodes() if node["Alive"]]
    storage, key = request["storage"], secrets.token_hex(8)
    here = Path(storage, f"{MARK}{key}-launcher") if storage else None
    try:
        if here:
            here.touch()
        found = _on_each(alive, _look, storage, request["model"], key)
        marks = [f"{MARK}{key}-launcher", *(f"{MARK}{key}-{node['NodeID']}" for node in alive)]
        seen = _on_each(alive, _see, storage, marks) if storage else {}
        _on_each(alive, _remove, storage, marks)
    finally:
        if here:
            here.unlink(missing_ok=True)
    nodes = [
        {"host": node["NodeManagerAddress"], "resources": node["Resources"], **found[node["NodeID"]]}
        | ({"shared": seen[node["NodeID"]].get("seen", [])[:1] == marks[:1]} if storage else {})
        for node in alive
    ]
    facts = {
        "address": ray.get_runtime_context().gcs_address,
        "nodes": nodes,
        "available": ray.available_resources(),
        "versions": _look("", "", "")["versions"],
    }
    ray.shutdown()
    return facts


def _on_each(nodes: list[dict[str, Any]], function: Any, *arguments: object) -> dict[str, dict[str, Any]]:
    """What `function` returns on each node, by node id; `{"error": ...}` where it does not in time."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    task = ray.remote(num_cpus=0, max_retries=0)(function)
    waiting = {
        node["NodeID"]: task.options(
            scheduling_strategy=NodeAffinitySchedulingStrategy(node_id=node["NodeID"], soft=False)
        ).remote(*arguments)
        for node in nodes
    }
    done, _ = ray.wait(list(waiting.values()), num_returns=len(waiting), timeout=SECONDS)
    results: dict[str, dict[str, Any]] = {}
    for name, reference in waiting.items():
        if reference not in done:
            results[name] = {"error": f"no answer in {SECONDS:.0f} s"}
            continue
        try:
            results[name] = ray.get(reference)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is that node's answer
            results[name] = {"error": str(error).strip().splitlines()[-1]}
    return results


def _look(storage: str, model: str, key: str) -> dict[str, Any]:
    import importlib.metadata
    import importlib.util
    import platform
    import shutil
    from pathlib import Path

    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    facts: dict[str, Any] = {
        "versions": versions,
        "launcher": importlib.util.find_spec("cpt_launcher") is not None,
        "hf_transfer": importlib.util.find_spec("hf_transfer") is not None,
        "model": not model or Path(model, "config.json").is_file(),
    }
    if storage:
        try:
            import ray

            node = ray.get_runtime_context().get_node_id()
            Path(storage, f"{MARK}{key}-{node}").touch()
            facts["free"] = shutil.disk_usage(storage).free
        except OSError as error:
            facts["storage_error"] = error.strerror or str(error)
    return facts


def _see(storage: str, marks: list[str]) -> dict[str, Any]:
    from pathlib import Path

    return {"seen": [mark for mark in marks if Path(storage, mark).exists()]}


def _remove(storage: str, marks: list[str]) -> dict[str, Any]:
    import contextlib
    from pathlib import Path

    for mark in marks if storage else ():
        with contextlib.suppress(OSError):
            Path(storage, mark).unlink()
    return {}


def hold(values: Mapping[str, str]) -> None:
    """Keep `values` in the cluster's memory under a key, printed, until stdin ends or a signal comes.

    The key-value store of Ray's control service: what it holds stands in no log and no file (unless the cluster's
    owner gave it a Redis to keep its state in), and whoever reaches the cluster can list and read it. No job is
    registered for it. An entry that nobody renews, its holder having been killed, expires; the next holder removes it.
    """
    client, key = _client(), secrets.token_hex(16)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: sys.exit(0))
    try:
        sweep(client)
        _renew(client, key, values)
        _say({"key": key})
        while not select.select([sys.stdin], [], [], RENEWED)[0]:  # stdin ends with the launcher, however that ends
            _renew(client, key, values)
    finally:
        client.internal_kv_del(key.encode(), False, NAMESPACE)


def _renew(client: Any, key: str, values: Mapping[str, str]) -> None:
    value = json.dumps({"until": time.time() + VALID, "values": dict(values)})
    client.internal_kv_put(key.encode(), value.encode(), True, NAMESPACE)


def sweep(client: Any) -> None:
    """Remove what nobody renews any more."""
    for key in client.internal_kv_keys(b"", NAMESPACE):
        found = client.internal_kv_get(key, NAMESPACE)
        if found is not None and _until(found) < time.time():
            client.internal_kv_del(key, False, NAMESPACE)


def _until(entry: bytes) -> float:
    """When an entry expires; 0 for what is none of `hold`'s."""
    try:
        return float(json.loads(entry)["until"])
    except (ValueError, KeyError, TypeError):
        return 0.0


def receive(key: str) -> dict[str, str]:
    """In a worker: the secrets that the launcher holds under `key`.

    Raises:
        RuntimeError: there are none, or they have expired: the launcher is gone.
    """
    from ray.experimental.internal_kv import _internal_kv_get

    found = _internal_kv_get(key, namespace=NAMESPACE)
    if found is None:
        raise RuntimeError("the launcher's secrets are not in the cluster's memory: is cpt run still there?")
    if _until(found) < time.time():
        raise RuntimeError(
            "the launcher's secrets have expired, it no longer renews them: start cpt run again"
            " (where it is still there, compare this node's clock with its own)"
        )
    return dict(json.loads(found)["values"])


def _say(value: object) -> None:
    sys.stdout.write(json.dumps(value) + "\n")
    sys.stdout.flush()


def _client() -> Any:
    from ray._private.services import canonicalize_bootstrap_address_or_die
    from ray._raylet import GcsClient  # type: ignore[attr-defined,unused-ignore]

    return GcsClient(address=canonicalize_bootstrap_address_or_die("auto"))


if __name__ == "__main__":
    sys.exit(main())
