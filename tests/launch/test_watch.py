"""What following a run costs the storage."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cpt_launcher.launch.watch import Watch
from cpt_launcher.layout import Layout
from cpt_launcher.runs.events import Event

from ..runs.test_checkpoints import save

MANY = 30


def _noted(inner: Callable[..., object], asked: list[str]) -> Callable[..., object]:
    def call(*arguments: object, **named: object) -> object:
        asked.append(str(arguments[0]) if arguments else ".")
        return inner(*arguments, **named)

    return call


@pytest.fixture
def looked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is asked of the file system from here on."""
    asked: list[str] = []
    for name in ("stat", "lstat", "scandir", "listdir", "open"):
        monkeypatch.setattr(os, name, _noted(getattr(os, name), asked))
    return asked


def test_checkpoints_are_looked_at_once(tmp_path: Path, looked: list[str]) -> None:
    layout, events = Layout(tmp_path, "first"), list[Event]()
    for step in range(1, MANY + 1):
        save(layout.output, step)
    plan: Any = SimpleNamespace(layout=layout, output=layout.output, workers=2, tokens_per_step=0, train={})
    watch = Watch(plan, {}, lambda _: None, lambda event, _: events.append(event))
    with watch.files():
        looked.clear()
        watch.finish()
        assert len([path for path in looked if "checkpoint-" in path]) <= MANY
        assert events == []
        new = save(layout.output, MANY + 1)
        watch.finish()
        assert [(event["event"], event["step"], event["path"]) for event in events] == [
            ("checkpoint", MANY + 1, str(new))
        ]
        looked.clear()
        watch.finish()
        assert len([path for path in looked if "checkpoint-" in path]) <= MANY + 1
        unfinished = save(layout.output, MANY + 2, marked=False)
        watch.finish()
        assert len(events) == 1
        whole = (new / "model.safetensors").read_bytes()
        unfinished.rename(layout.output / "gone")
        late = save(layout.output, MANY + 2)
        (late / "model.safetensors").write_bytes(b"")
        watch.finish()
        assert len(events) == 1
        (late / "model.safetensors").write_bytes(whole)
        watch.finish()
        watch.finish()
        assert [event["step"] for event in events] == [MANY + 1, MANY + 2]
