from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from cpt_launcher.errors import NotReadyError
from cpt_launcher.launch import cluster


def test_which_cluster_a_run_would_join(tmp_path: Path) -> None:
    env = {"RAY_TMPDIR": str(tmp_path)}
    assert not cluster.near(env)
    assert cluster.alone(env) == cluster.HOME | cluster.COLLECTIVES
    assert cluster.alone({**env, "NCCL_SOCKET_IFNAME": "eth0"})["NCCL_SOCKET_IFNAME"] == "eth0"
    assert cluster.settled(env) == env
    assert cluster.near({**env, "RAY_ADDRESS": "192.0.2.1:6379"})
    assert cluster.alone({**env, "RAY_ADDRESS": "192.0.2.1:6379"}) == {}
    assert not cluster.near({**env, "RAY_ADDRESS": "local"})
    assert cluster.alone({**env, "RAY_ADDRESS": "local"}) == cluster.HOME | cluster.COLLECTIVES
    assert cluster.alone({**env, "ANYSCALE_CLUSTER_ID": "ses_1"}) == {}
    (tmp_path / "ray").mkdir()
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        (tmp_path / "ray" / "ray_current_cluster").write_text(address)
        assert cluster.near(env)
        assert cluster.alone(env) == {}
        now = cluster.settled(env)
        assert now == {**env, "RAY_ADDRESS": address}
        assert cluster.only_found(env, now) == address
        assert cluster.only_found({**env, "RAY_ADDRESS": "auto"}, {**env, "RAY_ADDRESS": "auto"}) is None
        assert not cluster.gone(env, now)
    assert not cluster.near(env)
    now = cluster.settled(env)
    assert now == {**env, "RAY_ADDRESS": "local"}
    assert cluster.gone(env, now)
    assert cluster.alone(env) == cluster.alone(now)
    assert cluster.alone(now)["RAY_ADDRESS"] == "local"
    assert cluster.alone({**env, "RAY_ADDRESS": "auto"}) == {}
    assert cluster.settled({**env, "RAY_ADDRESS": "auto"}) == {**env, "RAY_ADDRESS": "auto"}


@pytest.mark.skipif(os.getuid() != 0, reason="only root gives a file away")
def test_an_address_that_another_user_left_is_not_obeyed(tmp_path: Path) -> None:
    env, left = {"RAY_TMPDIR": str(tmp_path)}, tmp_path / "ray" / "ray_current_cluster"
    left.parent.mkdir()
    with socket.create_server(("127.0.0.1", 0)) as server:
        left.write_text(f"127.0.0.1:{server.getsockname()[1]}")
        assert cluster.near(env)
        assert cluster.not_obeyed(env) == ""
        os.chown(left, 65534, 65534)
        assert not cluster.near(env)
        assert cluster.alone(env)["RAY_ADDRESS"] == "local"
        assert cluster.not_obeyed(env).startswith(f"{left} is another user's (uid 65534)")
        assert cluster.not_obeyed({**env, "RAY_ADDRESS": left.read_text()}) == ""
        with pytest.raises(NotReadyError, match="was started by another user"):
            cluster.ask({**env, "RAY_ADDRESS": "auto"})


def test_a_link_in_place_of_the_address_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "ray").mkdir()
    with socket.create_server(("127.0.0.1", 0)) as server:
        (tmp_path / "address").write_text(f"127.0.0.1:{server.getsockname()[1]}")
        (tmp_path / "ray" / "ray_current_cluster").symlink_to(tmp_path / "address")
        assert not cluster.near({"RAY_TMPDIR": str(tmp_path)})


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("ray://head:10001", "an address of Ray Client"),
        ("http://head:8265", "an address of the dashboard"),
        ("127.0.0.1:1", "no Ray cluster answers"),
        ("nonsense", "no Ray cluster answers"),
    ],
)
def test_an_address_that_no_cluster_has(address: str, said: str) -> None:
    with pytest.raises(NotReadyError, match=said):
        cluster.ask({"RAY_ADDRESS": address})
