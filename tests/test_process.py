import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cpt_launcher import process

# Runs `launch.run` in a process of its own: it becomes the parent of orphans, which pytest is not to be.
DRIVER = """
import json, os, sys
from cpt_launcher import process as launch
lines = []
os.environ["CPT_GRACE_SECONDS"] = sys.argv[1]
ended = launch.run(sys.argv[2:], dict(os.environ), lambda line: (lines.append(line), print(line, flush=True)))
print(json.dumps([ended.code, ended.interrupted_by, lines]))
"""


def start(*argv: str, grace: float = 20.0) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", DRIVER, str(grace), *argv]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def outcome(driver: "subprocess.Popen[str]") -> list[object]:
    with driver:
        out, _ = driver.communicate(timeout=50)
    return list(json.loads(out.splitlines()[-1]))


def python(code: str) -> tuple[str, ...]:
    return (sys.executable, "-u", "-c", code)


def test_every_line_arrives_also_a_progress_bars_and_bytes_that_are_no_text() -> None:
    code = r"import sys; sys.stdout.buffer.write('ä 1%\r2%\r\nb\xff'.encode('utf-8')[:-2] + b'\xff'); sys.exit(3)"
    assert outcome(start(*python(code))) == [3, None, ["ä 1%", "2%", "b\ufffd"]]


@pytest.mark.parametrize(
    ("chunks", "expected"),
    [
        ([b"a\r", b"\nb\n"], ["a", "b"]),
        (
            [b"a\r", b"b\r", b"\r\n"],
            [
                "a",
                "b",
                "",
            ],
        ),
        ([b"1%\r"], ["1%"]),
        ([b"\n\n"], ["", ""]),
        ([b"a\r", b"\n", b"\n"], ["a", ""]),
        (["ä".encode()[:1], "ä\n".encode()[1:]], ["ä"]),
        ([b"a\r", "ä".encode()[:1], "ä".encode()[1:]], ["a", "ä"]),
        (["ä".encode()[:1]], ["\ufffd"]),
        ([b"ab", b"c", b"\nd"], ["abc", "d"]),
    ],
)
def test_lines_out_of_pieces(chunks: list[bytes], expected: list[str]) -> None:
    found: list[str] = []
    lines = process._Lines(found.append)
    for chunk in chunks:
        lines.take(chunk)
    lines.end()
    assert found == expected


def test_output_without_a_line_break_is_cut() -> None:
    found: list[str] = []
    lines = process._Lines(found.append)
    for _ in range(40 * 1024 // 4):  # 40 MB in pieces of a pipe's page
        lines.take(b"x" * 4096)
    lines.take(b"\nnext")
    lines.end()
    assert {len(line) for line in found[:-2]} == {process.LONGEST}
    assert ("".join(found[:-1]), found[-1]) == ("x" * (40 << 20), "next")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_reaches_the_whole_group(number: signal.Signals, tmp_path: Path) -> None:
    note = tmp_path / "note"
    child = (
        f"import signal, time, pathlib; signal.signal({int(number)}, lambda *_: pathlib.Path({str(note)!r}).touch())"
    )
    child += "; print('ready', flush=True); time.sleep(60)"
    parent = f"import subprocess, sys; sys.exit(subprocess.call([sys.executable, '-u', '-c', {child!r}]))"
    driver = start(*python(parent), grace=0.5)
    assert driver.stdout is not None
    assert driver.stdout.readline() == "ready\n"
    driver.send_signal(number)
    ended = outcome(driver)
    assert note.exists()
    assert ended[1] == number


def daemons(marker: str) -> list[str]:
    """Processes that carry the marker in their command line."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            found.append(path.read_text())
        except OSError:
            continue
    return [line for line in found if marker in line and "launch.run" not in line]


def test_a_daemon_that_left_the_group_is_ended(tmp_path: Path) -> None:
    marker = f"marker-{os.getpid()}-{time.time_ns()}"
    daemon = "import os, signal, time; signal.signal(15, signal.SIG_IGN)"
    daemon += "; os.fork() and os._exit(0); os.setsid(); time.sleep(90)"
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {daemon!r}, {marker!r}]); print('done')"
    driver = start(*python(code))
    assert driver.stdout is not None
    assert driver.stdout.readline() == "done\n"
    assert len(daemons(marker)) >= 1
    assert outcome(driver) == [0, None, ["done"]]
    assert daemons(marker) == []


def test_a_second_signal_does_not_wait() -> None:
    deaf = "import signal, time; [signal.signal(n, signal.SIG_IGN) for n in (1, 2, 15)]; print('ready'); time.sleep(90)"
    driver = start(*python(deaf))
    assert driver.stdout is not None
    driver.stdout.readline()
    driver.send_signal(signal.SIGINT)
    time.sleep(0.3)
    driver.send_signal(signal.SIGINT)
    assert outcome(driver)[:2] == [-signal.SIGKILL, signal.SIGINT]


def test_when_the_launcher_is_killed_all_of_it_ends(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    code = (
        "import os, signal, subprocess, sys, time\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        f"open({str(pids)!r}, 'a').write(str(os.getpid()) + '\\n')\n"
        "if os.fork() == 0:\n"
        "    os.setsid()\n"
        f"    open({str(pids)!r}, 'a').write(str(os.getpid()) + '\\n')\n"
        "time.sleep(600)\n"
    )
    with start(*python(code)) as driver:
        while not pids.is_file() or len(pids.read_text().split()) < 2:
            assert driver.poll() is None
            time.sleep(0.05)
        driver.kill()
    deadline = time.monotonic() + 15
    while any(Path("/proc", pid).exists() for pid in pids.read_text().split()):
        assert time.monotonic() < deadline
        time.sleep(0.1)
