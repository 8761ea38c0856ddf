import dataclasses
from pathlib import Path

import pytest

from cpt_launcher.errors import NotReadyError, StorageError
from cpt_launcher.launch import preflight
from cpt_launcher.layout import Layout
from cpt_launcher.plan.plan import Plan


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
        "the run needs 1 GPU, and this machine has 0 NVIDIA GPUs and no Ray cluster: Ray would wait for ever",
    ]


def test_cpu_workers_need_cores_and_a_compiler(tmp_path: Path) -> None:
    path = {"PATH": str(tmp_path), "RAY_TMPDIR": str(tmp_path)}
    assert [problem.what for problem in preflight.cpus_enough(plan("cpu", workers=100_000), path)] != []
    assert preflight.cpus_enough(plan("cpu", workers=100_000), {"RAY_ADDRESS": "auto"}) == []
    assert preflight.cpus_enough(plan("gpu", workers=100_000), path) == []
    assert [problem.hint for problem in preflight.compiler_present(plan("cpu"), path)] != []
    (tmp_path / "c++").touch(mode=0o755)
    assert preflight.compiler_present(plan("cpu"), path) == []


@pytest.mark.parametrize(
    ("given", "usable"),
    [
        (None, 4), ("", 0), ("NoDevFiles", 0), ("-1", 0), ("0", 1), ("2,3", 2), ("0,-1,1", 1), ("GPU-8932f937", 1),
        ("MIG-a,MIG-b,MIG-c,MIG-d,MIG-e", 4), ("0,1,2,3", 4),
    ],
)  # fmt: skip
def test_gpus_that_a_variable_hides_are_not_counted(
    given: str | None, usable: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preflight, "gpus_here", lambda: 4)
    monkeypatch.setattr(preflight.record, "gpu_names", tuple)
    environ = {"RAY_TMPDIR": str(tmp_path), **({} if given is None else {"CUDA_VISIBLE_DEVICES": given})}
    assert preflight.gpus_visible(environ) == usable
    found = preflight.gpus_enough(plan(workers=4), environ)
    assert [problem.what for problem in found] == [
        f"the run needs 4 GPUs, and CUDA_VISIBLE_DEVICES={given} leaves {usable} of this machine's 4: "
        "Ray would wait for ever"
    ] * (usable < 4)
    assert preflight.gpus_enough(dataclasses.replace(plan(workers=4), env={"CUDA_VISIBLE_DEVICES": "0,1"}), {
        "RAY_TMPDIR": str(tmp_path)
    }) != []  # fmt: skip


class Disk:
    """What `shutil.disk_usage` tells."""

    def __init__(self, free: int) -> None:
        self.free = free


@pytest.mark.parametrize(
    ("keep", "free", "what", "hint"),
    [
        (0, 20, "5 checkpoints of 16.0 MB and the model of 4.0 MB need 84.0 MB at once, and 20.0 MB are free",
         "free 64.0 MB there, or choose another storage, or save less often: a larger train.save_steps"),
        (0, 53, "5 checkpoints of 16.0 MB and the model of 4.0 MB need 84.0 MB at once, and 53.0 MB are free",
         "free 31.0 MB there, or choose another storage, or set keep: 2 (one more is there while the next is written)"),
        (2, 45, "3 checkpoints of 16.0 MB and the model of 4.0 MB need 52.0 MB at once, and 45.0 MB are free",
         "free 7.0 MB there, or choose another storage, or set keep: 1 (one more is there while the next is written)"),
        (2, 0, "3 checkpoints of 16.0 MB and the model of 4.0 MB need 52.0 MB at once, and 0 B are free",
         "free 52.0 MB there, or choose another storage"),
        (1, 35, "2 checkpoints of 16.0 MB and the model of 4.0 MB need 36.0 MB at once, and 35.0 MB are free",
         "free 1.0 MB there, or choose another storage"),
    ],
)  # fmt: skip
def test_a_full_storage(
    keep: int, free: int, what: str, hint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preflight.footprint, "count_parameters", lambda _: 1_000_000)
    monkeypatch.setattr("shutil.disk_usage", lambda _: Disk(free * 1_000_000))
    there = dataclasses.replace(
        plan("cpu", model="/m"), layout=Layout(tmp_path, "r"), keep=keep, train_yaml="max_steps: 50\nsave_steps: 10\n"
    )
    (problem,) = preflight.space_enough(there, {})
    assert (problem.what, problem.where, problem.hint) == (what, str(tmp_path), hint)
    others = tuple(name for name in preflight.CHECKS if name != "space")
    with pytest.raises(StorageError):
        preflight.check(there, {"RAY_TMPDIR": str(tmp_path)}, skip=others)
    with pytest.raises(NotReadyError):
        preflight.check(dataclasses.replace(there, secrets=("X",)), {"RAY_TMPDIR": str(tmp_path)}, skip=others[1:])


def test_a_package_that_is_too_new_is_named_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "executable", lambda *_: "/x")
    monkeypatch.setattr(preflight.record, "versions", lambda: {"llamafactory": "0.9.4", "transformers": "4.60.0"})
    assert [(problem.what, problem.hint) for problem in preflight.stack_installed(plan(), {})] == [
        ("llamafactory 0.9.4 is installed, and cpt writes its YAML for 0.9.3", "pip install 'llamafactory==0.9.3'"),
        (
            "transformers 4.60.0 is installed, and LLaMA-Factory 0.9.3 refuses any above 4.52.4",
            "pip install 'transformers==4.52.4'",
        ),
    ]


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


def test_a_mistyped_folder_is_no_model_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    (problem,) = preflight.model_present(plan(model="tiny-gemma"), {})
    assert problem.what.endswith("; there is no folder tiny-gemma here either")
    assert "model: ./tiny-gemma" in problem.hint
    (problem,) = preflight.model_present(plan(model="some/model"), {})
    assert ("no folder" in problem.what, "cpt fetch-model" in problem.hint) == (False, True)
