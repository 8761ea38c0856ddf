"""One run of the real stack through everything that can hit it, and one on a disk that fills up."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ..conftest import CPT, REPOSITORY, SECRETS, Place

pytestmark = pytest.mark.e2e
CONFIG = str(REPOSITORY / "configs" / "tiny_cpu.yaml")
SECONDS = 400.0


class Started:
    """A running `cpt run`."""

    def __init__(self, place: Place, *arguments: str, log: Path) -> None:
        self.log = log
        self.storage = place.storage
        command = [*CPT, "run", CONFIG, *arguments]
        with log.open("w") as file:
            self.process = subprocess.Popen(
                command, cwd=place.work, env=place.env(), stdout=file, stderr=subprocess.STDOUT, text=True
            )

    def until(self, there: Callable[[], object], what: str) -> None:
        deadline = time.monotonic() + SECONDS
        while not there():
            assert self.process.poll() is None, f"it ended before: {what}\n{self.said()[-3000:]}"
            assert time.monotonic() < deadline, f"not in time: {what}\n{self.said()[-3000:]}"
            time.sleep(0.05)

    def ended(self) -> int:
        return self.process.wait(SECONDS)

    def said(self) -> str:
        return self.log.read_text()


def marked(output: Path, at_least: int) -> bool:
    steps = [int(path.parent.name[11:]) for path in output.glob("checkpoint-*/cpt-complete.json")]
    return max(steps, default=0) >= at_least


def pids(place: Place, pattern: str) -> list[int]:
    """Processes of this place's Ray whose command line, or title, matches."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            line = (path / "cmdline").read_text(errors="replace").replace("\0", " ")
            ours = str(place.ray).encode() in (path / "environ").read_bytes()
        except OSError:
            continue
        if ours and re.search(pattern, line):
            found.append(int(path.name))
    return found


def status(place: Place, run: str) -> dict[str, object]:
    command = [*CPT, "status", str(place.storage / run), "--json"]
    done = subprocess.run(command, cwd=place.work, env=place.env(), capture_output=True, text=True, check=True)
    return dict(json.loads(done.stdout))


def losses(output: Path) -> dict[int, float]:
    """The last loss that was logged for each step."""
    rows = []
    for line in (output / "trainer_log.jsonl").read_text().splitlines():
        try:
            rows.append(json.loads(line))
        except ValueError:
            continue
    return {row["current_steps"]: row["loss"] for row in rows if "loss" in row}


def leaks(place: Place, *folders: Path) -> list[tuple[str, Path]]:
    files = [path for root in folders for path in root.rglob("*") if path.is_file() and not path.is_symlink()]
    return [(name, path) for path in files for name, value in SECRETS.items() if value.encode() in path.read_bytes()]


def test_a_run_survives_signals_kills_and_a_cut_checkpoint(
    place: Place, trained: subprocess.CompletedProcess[str], tmp_path: Path
) -> None:
    assert trained.returncode == 0, trained.stderr[-3000:]
    output = place.storage / "hit" / "output"
    arguments = ("name=hit", "train.save_steps=5", "keep=3")

    for number, phase in ((signal.SIGINT, "starting workers"), (signal.SIGTERM, "loading the stack")):
        hit = Started(place, *arguments, log=tmp_path / phase.replace(" ", "-"))
        hit.until(lambda log=hit, text=phase: f"cpt: {text}" in log.said(), phase)  # type: ignore[misc]
        hit.process.send_signal(number)
        assert hit.ended() == 130, hit.said()
        assert place.processes() == []
        assert status(place, "hit")["state"] == "interrupted"

    hit = Started(place, *arguments, log=tmp_path / "launcher")
    hit.until(lambda: marked(output, 10), "two checkpoints")
    again = Started(place, *arguments, log=tmp_path / "second")
    assert (again.ended(), "the run hit is running" in again.said()) == (4, True)
    hit.process.kill()
    assert hit.ended() == -signal.SIGKILL
    deadline = time.monotonic() + 60
    while place.processes() and time.monotonic() < deadline:
        time.sleep(0.5)
    assert place.processes() == []
    assert status(place, "hit")["state"] == "lost"
    newest = max(output.glob("checkpoint-*/cpt-complete.json"), key=lambda path: int(path.parent.name[11:])).parent
    chance = random.Random()
    victim = chance.choice(sorted(path for path in newest.rglob("*") if path.stat().st_size > 1 and path.is_file()))
    os.truncate(victim, chance.randrange(victim.stat().st_size))

    hit = Started(place, *arguments, "--retries", "2", log=tmp_path / "retries")
    hit.until(lambda: f"{newest.name} is incomplete" in hit.said(), "the cut checkpoint set aside")
    hit.until(lambda: "resumes from" in hit.said(), "resumed")
    before = max(losses(output))
    hit.until(lambda: "cpt: step " in hit.said(), "a step")
    os.kill(pids(place, r"^ray::_RayTrainWorker|ray::RayTrainWorker")[0], signal.SIGKILL)
    hit.until(lambda: "tries again in 10 s (1 of 2)" in hit.said(), "another try")
    hit.until(lambda: hit.said().rpartition("tries again in")[2].count("cpt: step ") > 0, "a step of the second try")
    raylets = pids(place, r"/raylet/raylet ")
    assert len(raylets) == 1
    os.kill(raylets[0], signal.SIGKILL)
    assert hit.ended() == 0, hit.said()[-5000:]
    assert "tries again in 20 s (2 of 2)" in hit.said()
    assert before < 40

    found = status(place, "hit")
    assert found["state"] == "finished"
    causes = [str(item["cause"]) for item in found["restarts"]]  # type: ignore[attr-defined]
    assert causes[:3] == ["interrupted by SIGINT", "interrupted by SIGTERM", "its launcher was gone"]
    assert len(causes) == 5
    assert place.processes() == []
    straight, resumed = losses(place.storage / "tiny_cpu" / "output"), losses(output)
    assert max(resumed) == 40
    # The same seed: seen equal to four digits; a step or two of noise in the last place is allowed for.
    assert resumed[40] == pytest.approx(straight[40], abs=0.02)
    kept = {path.name for path in output.glob("checkpoint-*") if path.name[11:].isdigit()}
    assert kept == {"checkpoint-30", "checkpoint-35", "checkpoint-40"}
    links = [path for path in (place.storage / "hit").glob("TorchTrainer_*/checkpoint_*/checkpoint") if path.exists()]
    assert links
    assert all(path.is_symlink() for path in links)
    assert leaks(place, place.work, place.ray, tmp_path) == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 45 MB: two checkpoints of the demo's model fit, a third one does not."""
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=45m", "tmpfs", folder], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"no tmpfs can be mounted here: {mounted.stderr.decode()}")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_disk_that_fills_up_at_a_checkpoint(
    place: Place, trained: subprocess.CompletedProcess[str], small_disk: Path, tmp_path: Path
) -> None:
    shutil.copy(place.storage / "moby_dick.jsonl", small_disk)
    arguments = (f"storage={small_disk}", "name=full", "train.save_steps=10", "train.max_steps=30")
    full = Started(place, *arguments, "--skip-preflight", "space", log=tmp_path / "full")
    assert full.ended() == 1, full.said()[-3000:]
    assert "disk" in full.said().partition("error: training failed")[2], full.said()[-3000:]
    output = small_disk / "full" / "output"
    assert marked(output, 10)
    assert json.loads((small_disk / "full" / "cpt" / "run.json").read_text())["state"] == "failed"
    refused = Started(place, *arguments, log=tmp_path / "refused")
    assert (refused.ended(), "B are free" in refused.said()) == (5, True), refused.said()[-3000:]
    subprocess.run(["mount", "-o", "remount,size=200m", small_disk], check=True)
    done = Started(place, *arguments, log=tmp_path / "done")
    assert done.ended() == 0, done.said()[-3000:]
    assert "resumes from" in done.said()
    assert max(losses(output)) == 30
    assert place.processes() == []
    assert leaks(place, small_disk, tmp_path) == []
