from pathlib import Path

from cpt_launcher import results
from cpt_launcher.layout import Layout

LOG = """\
(RayTrainWorker pid=12, ip=10.0.0.1) Traceback (most recent call last):
\x1b[36m(RayTrainWorker pid=12)\x1b[0m torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB
The above exception was the direct cause of the following exception:
ray.exceptions.RayTaskError(OutOfMemoryError): ray::_RayTrainWorker__execute.get_next()
ray.train.base_trainer.TrainingFailedError: The Ray Train run failed. Please inspect the previous error messages
"""


def test_the_cause_is_the_innermost_exception() -> None:
    assert results.cause(LOG.splitlines()) == ("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB")


def test_without_a_chain_the_last_error_counts() -> None:
    assert results.cause(["KeyError: 'a'", "ValueError: b", "done"]) == "ValueError: b"
    assert results.cause(["all is well: no Error here"]) is None


def test_a_checkpoint_is_complete_with_its_state_and_every_ranks(tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoint-10"
    checkpoint.mkdir()
    (checkpoint / "latest").touch()
    (checkpoint / "rng_state_0.pth").touch()
    assert not results.is_complete(checkpoint, 2)
    (checkpoint / "trainer_state.json").write_text('{"global_step"')
    assert not results.is_complete(checkpoint, 2)
    (checkpoint / "trainer_state.json").write_text('{"global_step": 10}')
    assert not results.is_complete(checkpoint, 2)
    (checkpoint / "rng_state_1.pth").touch()
    assert results.is_complete(checkpoint, 2)


def test_read(tmp_path: Path) -> None:
    layout = Layout(tmp_path, "r")
    for name in ("checkpoint-100", "checkpoint-20", "checkpoint-tmp"):
        (layout.output / name).mkdir(parents=True)
    points = ['{"current_steps": 1, "loss": 3.5}', '{"current_steps": 9, "eval_loss": 1}']
    log = "\n".join([*points, '{"current_steps": 10, "loss": 2.5}', '{"cur'])
    (layout.output / "trainer_log.jsonl").write_text(log)
    found = results.read(layout.output)
    assert found == results.Results(
        10, 3.5, 2.5, (layout.output / "checkpoint-20", layout.output / "checkpoint-100"), None
    )
    assert results.read(tmp_path) is None
