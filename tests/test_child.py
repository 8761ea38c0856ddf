"""Processes that import nothing from the directory they are started in."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cpt_launcher import child, process
from cpt_launcher.launch import mlflow_page, tokenize
from cpt_launcher.runs import evaluate, export

SHOW = "import json, sys; print(json.dumps([sys.argv, sys.path, __name__]))"


@pytest.fixture
def planted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory whose modules say that they were imported."""
    marker = tmp_path / "imported"
    (tmp_path / "here" / "cpt_launcher").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    for name in ("tokenize", "mlflow", "cpt_launcher/__init__", "cpt_launcher/guard", "cpt_launcher/ray_cluster"):
        Path(f"{name}.py").write_text(f"open({str(marker)!r}, 'a').write(__name__ + chr(10))\n")
    return marker


def test_it_would_be_imported_the_plain_way(planted: Path) -> None:
    subprocess.run([sys.executable, "-m", "cpt_launcher.guard", "true"], check=False)
    assert planted.read_text().splitlines() == ["cpt_launcher", "__main__"]


@pytest.mark.parametrize("version", [(3, 10), (3, 11)])
def test_a_module_and_its_arguments(planted: Path, version: tuple[int, int], tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "shown.py").write_text(SHOW)
    env = child.env({**os.environ, "PYTHONPATH": str(tmp_path / "elsewhere")})
    done = subprocess.run(
        child.argv("shown", "a b", version=version), env=env, capture_output=True, text=True, check=True
    )
    argv, path, name = json.loads(done.stdout)
    assert (argv, name) == ([str(tmp_path / "elsewhere" / "shown.py"), "a b"], "__main__")
    assert "" not in path
    assert str(Path.cwd()) not in path
    guarded = child.argv("cpt_launcher.guard", sys.executable, "-c", "print(1)", version=version)
    assert subprocess.run(guarded, env=env, capture_output=True, check=True).stdout == b"1\n"
    assert not planted.exists()


def test_a_package_that_came_from_the_working_directory_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(child.ROOT)
    assert child.env({})["PYTHONPATH"] == str(child.ROOT)
    assert child.env({"PYTHONPATH": f"/a::b{os.pathsep}"})["PYTHONPATH"].split(os.pathsep) == [
        str(child.ROOT), "/a", str(child.ROOT / "b")
    ]  # fmt: skip
    assert child.env({"PYTHONPATH": str(child.ROOT)})["PYTHONPATH"] == str(child.ROOT)


def test_the_guard_runs_in_the_folder_given(planted: Path, tmp_path: Path) -> None:
    code = "import os; print(os.getcwd())"
    driver = f"""
from pathlib import Path
from cpt_launcher import process as launch
launch.run((__import__('sys').executable, '-c', {code!r}), dict(__import__('os').environ), print, folder=Path({str(tmp_path)!r}))
launch.run((__import__('sys').executable, '-c', {code!r}), dict(__import__('os').environ), print)
"""  # noqa: E501
    script = tmp_path / "elsewhere.py"
    script.write_text(driver)
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(tmp_path), str(tmp_path / "here")]
    assert not planted.exists()


@pytest.mark.e2e
def test_cpt_ui_does_not_take_the_working_directorys_modules(planted: Path) -> None:
    storage = Path("storage").absolute()
    storage.mkdir()
    (storage / "mlflow.db").write_bytes(b"no database")  # its server ends at once, after all of its imports
    cpt = str(Path(sys.executable).with_name("cpt"))
    done = subprocess.run([cpt, "ui", "--storage", storage], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 4, done.stderr
    assert "MLflow's server ended" in done.stderr
    assert not planted.exists(), planted.read_text()


def test_there_is_nothing_to_import_where_training_starts() -> None:
    assert {path.suffix for path in child.FOLDER.iterdir()} == {".json"}


def test_every_helper_is_started_this_way() -> None:
    """No module of ours says `-m` itself."""
    sources = {path: path.read_text() for path in Path(child.__file__).parent.rglob("*.py")}
    assert [path.name for path, text in sources.items() if '"-m"' in text] == ["child.py"]
    for module in (evaluate, export, process, mlflow_page, tokenize):
        assert "child.argv(" in sources[Path(str(module.__file__))]
