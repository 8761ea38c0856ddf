"""A Ray cluster that is there already: what it has, what it lacks for a run, and secrets kept in its memory."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from cpt_launcher import child
from cpt_launcher.errors import NotReadyError, Problem
from cpt_launcher.launch.nodes import Cluster, read
from cpt_launcher.plan.plan import ANYSCALE, UNSET, Plan

SECONDS = 240.0  # for the whole probe: three rounds of a minute at most
ADDRESS = "RAY_ADDRESS"
# Ray 2.48 takes 127.0.0.1 for its node where this is off (ray/_private/services.py, `get_node_ip_address`), and then
# all of its daemons and workers listen there alone. Its ports have no login.
HOME = {ADDRESS: "local", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
_LOOPBACK = "lo" if sys.platform == "linux" else "lo0"
COLLECTIVES = {"GLOO_SOCKET_IFNAME": _LOOPBACK, "NCCL_SOCKET_IFNAME": _LOOPBACK}  # the workers' own sockets


def near(environ: Mapping[str, str]) -> bool:
    """Whether a run would join a cluster: `RAY_ADDRESS` says so, or `ray start` left its address and it answers."""
    given = environ.get(ADDRESS)
    if given:
        return given != "local"
    address = _left_behind(environ)
    return address is not None and _answers(address)


def alone(environ: Mapping[str, str]) -> dict[str, str]:
    """What a run needs to start Ray itself, on loopback: `local` said in so many words, since Ray 2.48 would try for
    ever to join a cluster that is gone, and would obey an address that another user left. Empty where it joins one, and
    on Anyscale, whose Ray knows its own cluster.
    """
    left = environ.get(ADDRESS) or _read(_address_file(environ))[1]
    if near(environ) or (not left and any(environ.get(name) for name in ANYSCALE)):
        return {}
    return HOME | {name: environ.get(name) or value for name, value in COLLECTIVES.items()}


def settled(environ: Mapping[str, str]) -> dict[str, str]:
    """The environment in which nobody need ask again whether a cluster is near: with the address that `ray start` left
    and that answers, or with `local` where it left one that is gone.
    """
    address = None if environ.get(ADDRESS) else _left_behind(environ)
    return {**environ, ADDRESS: address if _answers(address) else "local"} if address else dict(environ)


def gone(given: Mapping[str, str], now: Mapping[str, str]) -> bool:
    """Whether `ray start` left the address of a cluster that no longer answers; `now` is `given`, settled."""
    return not given.get(ADDRESS) and now.get(ADDRESS) == "local"


def only_found(given: Mapping[str, str], now: Mapping[str, str]) -> str | None:
    """The address of a cluster that is near without being named by `RAY_ADDRESS`; `now` is `given`, settled."""
    return now.get(ADDRESS) if not given.get(ADDRESS) and near(now) else None


def not_obeyed(environ: Mapping[str, str]) -> str:
    """Why the address in Ray's temporary folder, which any user can write, is left alone; empty where it is not."""
    path = _address_file(environ)
    owner, _ = _read(path)
    if (environ.get(ADDRESS) or "auto") != "auto" or owner in (None, 0, os.getuid()):
        return ""
    return (
        f"{path} is another user's (uid {owner}), and its Ray cluster is not joined; name it to: RAY_ADDRESS=HOST:PORT"
    )


def ask(environ: Mapping[str, str]) -> Cluster:
    """Look at the nodes, without a run in mind.

    Raises:
        NotReadyError: no cluster answers.
    """
    return _probe("", "", environ)


def probe(plan: Plan, environ: Mapping[str, str]) -> Cluster:
    """Look at the nodes for what a run needs: a task on each, so that it says what a worker would see.

    Raises:
        NotReadyError: no cluster answers.
    """
    model = plan.model if plan.model.startswith("/") else ""
    return _probe(str(plan.layout.storage), model, environ)


@contextlib.contextmanager
def holding(values: Mapping[str, str], environ: Mapping[str, str]) -> Iterator[str]:
    """Keep secrets in the cluster's memory while the context lasts, and give the key that workers find them under.

    Raises:
        NotReadyError: the cluster does not take them.
    """
    process = subprocess.Popen(
        _command("hold"),
        env=_env(environ),
        cwd=child.FOLDER,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    key = ""
    try:
        with contextlib.suppress(OSError):
            process.stdin.write(json.dumps(dict(values)) + "\n")
            process.stdin.flush()
        key = str(json.loads(process.stdout.readline() or '{"key": ""}')["key"])
        if not key:
            what = "the Ray cluster did not take the secrets"
            raise NotReadyError(Problem(what, _address(environ), "look at the cluster with cpt doctor"))
        yield key
    finally:
        with contextlib.suppress(OSError):
            process.stdin.close()
        try:
            code = process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            code = process.wait()
        process.stdout.close()
        if code != 0 and key:  # it had no time to take them out
            with contextlib.suppress(subprocess.SubprocessError):
                subprocess.run(
                    _command("drop"),
                    env=_env(environ),
                    cwd=child.FOLDER,
                    input=key,
                    text=True,
                    timeout=30,
                    capture_output=True,
                    check=False,
                )


def _probe(storage: str, model: str, environ: Mapping[str, str]) -> Cluster:
    address = _address(environ)
    if "://" in address:
        kind = "Ray Client" if address.startswith("ray://") else "the dashboard"
        hint = "run cpt on a node of the cluster, with RAY_ADDRESS=auto"
        raise NotReadyError(Problem(f"RAY_ADDRESS is an address of {kind}, which training cannot join", address, hint))
    if address == "auto" and (why := not_obeyed(environ)):
        raise NotReadyError(Problem("the Ray cluster here was started by another user", address, why))
    if address != "auto" and not _answers(address):
        hint = "start it (`ray start --head`), or unset RAY_ADDRESS: the run then starts Ray itself"
        raise NotReadyError(Problem("no Ray cluster answers", address, hint))
    request = json.dumps({"storage": storage, "model": model})
    try:
        done = subprocess.run(
            _command("probe"),
            env=_env(environ),
            cwd=child.FOLDER,  # Ray gives the directory to its workers to import from
            input=request,
            text=True,
            timeout=SECONDS,
            capture_output=True,
            check=False,
        )
    except subprocess.TimeoutExpired:
        hint = "look at it with `ray status`, or --skip-preflight cluster"
        raise NotReadyError(Problem(f"the Ray cluster did not answer in {SECONDS:.0f} s", address, hint)) from None
    if done.returncode != 0:
        said = [line for line in done.stderr.splitlines() if line.strip()]
        hint = "look at it with `ray status`, or --skip-preflight cluster"
        raise NotReadyError(Problem(f"cannot ask the Ray cluster: {said[-1] if said else 'no word'}", address, hint))
    return read(json.loads(done.stdout.strip().splitlines()[-1]))


def _address(environ: Mapping[str, str]) -> str:
    return environ.get(ADDRESS) or _left_behind(environ) or "auto"


def _left_behind(environ: Mapping[str, str]) -> str | None:
    """The address in the file that `ray start` writes, if this user or root wrote it."""
    owner, text = _read(_address_file(environ))
    return text if text and owner in (0, os.getuid()) else None


def _address_file(environ: Mapping[str, str]) -> Path:
    """As in ray/_private/utils.py, `read_ray_address`."""
    return Path(environ.get("RAY_TMPDIR") or environ.get("TMPDIR") or "/tmp", "ray", "ray_current_cluster")


def _read(path: Path) -> tuple[int | None, str]:
    """Whose file it is and what it says, of one and the same file; None where there is none, links included."""
    try:
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), encoding="ascii") as file:
            return os.fstat(file.fileno()).st_uid, file.read().strip()
    except (OSError, ValueError):
        return None, ""


def _answers(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=3).close()
    except (OSError, ValueError, OverflowError):
        return False
    return True


def _command(task: str) -> Sequence[str]:
    return child.argv("cpt_launcher.stack.probe", task)


def _env(environ: Mapping[str, str]) -> dict[str, str]:
    kept = {key: value for key, value in environ.items() if key not in UNSET}
    return child.env({**kept, ADDRESS: _address(environ), "RAY_USAGE_STATS_ENABLED": "0"})
