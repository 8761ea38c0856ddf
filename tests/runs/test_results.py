from pathlib import Path

from cpt_launcher.layout import Layout
from cpt_launcher.runs import results


def test_read(tmp_path: Path) -> None:
    layout = Layout(tmp_path, "r")
    for name in ("checkpoint-100", "checkpoint-20", "checkpoint-tmp"):
        (layout.output / name).mkdir(parents=True)
        step = name.partition("-")[2]
        (layout.output / name / "trainer_state.json").write_text(f'{{"global_step": {step}}}')
    points = ['{"current_steps": 1, "loss": 3.5}', '{"current_steps": 9, "eval_loss": 1}']
    log = "\n".join([*points, '{"current_steps": 10, "loss": 2.5}', '{"cur'])
    (layout.output / "trainer_log.jsonl").write_text(log)
    found = results.read(layout.output)
    assert found == results.Results(
        10, 3.5, 2.5, (layout.output / "checkpoint-20", layout.output / "checkpoint-100"), None
    )
    assert results.read(tmp_path) is None


def test_rows_that_are_none_are_passed_over(tmp_path: Path) -> None:
    lines = (
        '{"loss": 1.0}', '{"current_steps": "x", "loss": 1.0}', '{"current_steps": 3, "loss": "x"}', "[" * 100_000,
        '{"current_steps": 4, "loss": null}', '{"current_steps": [], "eval_loss": 1.0}', "null", "\udcff",
    )  # fmt: skip
    good = ['{"current_steps": 1, "loss": 3.0}', '{"current_steps": 2, "loss": 2.0}']
    text = "\n".join((good[0], *lines, good[1]))
    (tmp_path / "trainer_log.jsonl").write_text(text, errors="surrogateescape")
    found = results.read(tmp_path)
    assert found is not None
    assert (found.steps, found.first_loss, found.last_loss) == (2, 3.0, 2.0)


def test_the_last_step_is_the_last_row_whether_or_not_its_loss_was_logged(tmp_path: Path) -> None:
    rows = ['{"current_steps": 40, "loss": 2.0}', '{"current_steps": 42, "eval_loss": 1.5}', '{"current_steps": 42}']
    (tmp_path / "trainer_log.jsonl").write_text("\n".join(rows))
    found = results.read(tmp_path)
    assert found is not None
    assert (found.steps, found.last_loss, found.trained) == (42, 2.0, 1.5)
    (tmp_path / "trainer_log.jsonl").write_text("\n".join([rows[0], rows[2]]))
    (tmp_path / "eval_results.json").write_text('{"eval_loss": 1.25}')
    found = results.read(tmp_path)
    assert found is not None
    assert found.trained == 1.25
