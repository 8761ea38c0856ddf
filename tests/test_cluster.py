from __future__ import annotations

import socket
from pathlib import Path

import pytest

from cpt_launcher import cluster
from cpt_launcher.errors import NotReadyError


def test_which_cluster_a_run_would_join(tmp_path: Path) -> None:
    env = {"RAY_TMPDIR": str(tmp_path)}
    assert not cluster.near(env)
    assert cluster.alone(env) == {}
    assert cluster.near({**env, "RAY_ADDRESS": "192.0.2.1:6379"})
    assert not cluster.near({**env, "RAY_ADDRESS": "local"})
    (tmp_path / "ray").mkdir()
    with socket.create_server(("127.0.0.1", 0)) as server:
        (tmp_path / "ray" / "ray_current_cluster").write_text(f"127.0.0.1:{server.getsockname()[1]}")
        assert cluster.near(env)
        assert cluster.alone(env) == {}
    assert not cluster.near(env)
    assert cluster.alone(env) == {"RAY_ADDRESS": "local"}
    assert cluster.alone({**env, "RAY_ADDRESS": "auto"}) == {}


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
