from pathlib import Path

from cpt_launcher import results
from cpt_launcher.layout import Layout


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
