"""Runs in every Ray worker of `checkpoints.py`: seconds and bytes written by the process in `on_save`."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

from cpt_launcher.stack.after_import import AfterImport
from cpt_launcher.stack.worker import CALLBACKS


def setup() -> None:
    AfterImport.install(CALLBACKS, _measure)


def _measure(module: Any) -> None:
    inner = module.RayTrainReportCallback.on_save

    def on_save(self: Any, args: Any, state: Any, control: Any, **more: Any) -> None:
        before, began = _written(), time.perf_counter()
        inner(self, args, state, control, **more)
        row = {"step": state.global_step, "seconds": time.perf_counter() - began, "bytes": _written() - before}
        with Path(os.environ["PROBE_FILE"]).open("a") as file:
            file.write(json.dumps(row) + "\n")

    module.RayTrainReportCallback.on_save = on_save


def _written() -> int:
    """Bytes this process has handed to write(2) and its like (proc_pid_io(5), wchar)."""
    fields = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(fields["wchar"])
