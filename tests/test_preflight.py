import dataclasses
from pathlib import Path

import pytest

from cpt_launcher import preflight
from cpt_launcher.errors import NotReadyError, StorageError
from cpt_launcher.layout import Layout
from cpt_launcher.plan import Plan


def plan(device: str = "gpu", workers: int = 1, model: str = "a/b", secrets: tuple[str, ...] = ()) -> Plan:
    argv = ("llamafactory-cli", "train", "x.yaml")
    return Plan(Path("c.yaml"), Layout(Path("/s"), "r"), "", argv, {}, model, workers, device, None, secrets)


def test_all_findings_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.executable", str(tmp_path / "python"))
    monkeypatch.setattr(preflight, "gpus_here", lambda: 0)
    with pytest.raises(NotReadyError) as caught:
        preflight.check(
            plan(model=str(tmp_path), secrets=("HF_TOKEN",)), {"PATH": str(tmp_path), "RAY_TMPDIR": str(tmp_path)}
        )
    assert [problem.what for problem in caught.value.problems] == [
        "the storage is not there",
        "the secret HF_TOKEN is not set",
        "not installed: llamafactory-cli",
        "the model is no folder with a config.json",
        "1 GPU workers, and this machine has 0 NVIDIA GPUs and no Ray cluster",
    ]


def test_cpu_workers_need_cores_and_a_compiler(tmp_path: Path) -> None:
    path = {"PATH": str(tmp_path), "RAY_TMPDIR": str(tmp_path)}
    assert [problem.what for problem in preflight.cpus_enough(plan("cpu", workers=100_000), path)] != []
    assert preflight.cpus_enough(plan("cpu", workers=100_000), {"RAY_ADDRESS": "auto"}) == []
    assert preflight.cpus_enough(plan("gpu", workers=100_000), path) == []
    assert [problem.hint for problem in preflight.compiler_present(plan("cpu"), path)] != []
    (tmp_path / "c++").touch(mode=0o755)
    assert preflight.compiler_present(plan("cpu"), path) == []


def test_the_command_on_path_comes_before_the_one_beside_python(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in ("path", "beside"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "tool").touch(mode=0o755)
    monkeypatch.setattr("sys.executable", str(tmp_path / "beside" / "python"))
    assert preflight.executable("tool", {"PATH": str(tmp_path / "path")}) == str(tmp_path / "path" / "tool")
    assert preflight.executable("tool", {"PATH": "/absent"}) == str(tmp_path / "beside" / "tool")
    assert preflight.executable("absent", {"PATH": "/absent"}) is None


def test_an_absent_storage_alone_is_an_error_of_storage(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="the storage is not there"):
        preflight.check(plan(), {"RAY_TMPDIR": str(tmp_path)}, skip=tuple(preflight.CHECKS))


def test_kernels_that_are_asked_for_are_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "llamafactory-cli").touch(mode=0o755)
    asked = dataclasses.replace(plan(), train_yaml="enable_liger_kernel: true\nflash_attn: fa2\n")
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    monkeypatch.setattr(preflight.record, "versions", dict)
    found = preflight.stack_installed(asked, {"PATH": str(tmp_path)})
    assert [problem.what for problem in found] == [
        "train.enable_liger_kernel is set, and liger-kernel is not installed",
        "train.flash_attn is set, and flash-attn is not installed",
    ]
    assert preflight.stack_installed(plan(), {"PATH": str(tmp_path)}) == []
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    assert preflight.stack_installed(asked, {"PATH": str(tmp_path)}) == []


def test_a_model_that_writes_elsewhere(workspace: Path) -> None:
    (cached,) = (workspace / "hub").rglob("config.json")
    (cached.parent / "tokenizer_config.json").write_text('{"chat_template": {"../x": ""}}')
    for model in ("some/model", str(cached.parent)):
        (problem,) = preflight.model_present(plan(model=model), {})
        assert "'../x'" in problem.what
    (cached.parent / "tokenizer_config.json").write_text('{"chat_template": {"x": ""}}')
    assert preflight.model_present(plan(model="some/model"), {}) == []
