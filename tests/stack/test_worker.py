"""What the workers' hook changes, on classes like those that it changes; the real ones are in test_e2e."""

from __future__ import annotations

import contextlib
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from cpt_launcher.stack import worker


def test_the_last_step_is_evaluated_once() -> None:
    class CustomTrainer:
        def __init__(self, *, best: bool = False) -> None:
            self.state, self.is_in_train = SimpleNamespace(global_step=0), True
            self.args = SimpleNamespace(load_best_model_at_end=best)
            self.evaluated: list[int] = []

        def evaluate(self, ignore_keys: object = None, metric_key_prefix: str = "eval") -> dict[str, float]:
            assert ignore_keys is None
            self.evaluated.append(self.state.global_step)
            return {f"{metric_key_prefix}_loss": 10.0 - self.state.global_step}

    module = ModuleType("trainer")
    module.CustomTrainer = CustomTrainer  # type: ignore[attr-defined]
    worker._evaluate_once(module)

    def train(last: int, *, best: bool = False) -> tuple[list[int], dict[str, float]]:
        trainer = CustomTrainer(best=best)
        for step in (0, 4, 8):
            trainer.state.global_step = step
            trainer.evaluate(ignore_keys=None)
        trainer.state.global_step, trainer.is_in_train = last, False
        return trainer.evaluated, trainer.evaluate(metric_key_prefix="eval")

    assert train(8) == ([0, 4, 8], {"eval_loss": 2.0})
    assert train(9) == ([0, 4, 8, 9], {"eval_loss": 1.0})
    assert train(8, best=True) == ([0, 4, 8, 8], {"eval_loss": 2.0})


class MLflowCallback:
    """As transformers 4.52's is, in what it asks of MLflow."""

    def __init__(self, mlflow: Any) -> None:
        self._ml_flow, self._initialized, self._auto_end_run = mlflow, False, False

    def setup(self, args: Any, *_: object) -> None:
        self._ml_flow.start_run(run_name=args.run_name)
        self._ml_flow.log_params(args.to_dict(), synchronous=False)
        self._initialized = True

    def on_log(self, _args: object, state: Any, _control: object, logs: dict[str, float]) -> None:
        self._ml_flow.log_metrics(metrics=logs, step=state.global_step, synchronous=False)

    def on_train_end(self, *_: object) -> None:
        raise AssertionError("the launcher ends the run")


@pytest.mark.e2e
@pytest.mark.filterwarnings("ignore")  # of MLflow's own use of SQLAlchemy
def test_a_resumed_run_with_other_arguments_is_still_tracked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    mlflow = pytest.importorskip("mlflow")
    client = mlflow.MlflowClient(uri)
    number = client.create_experiment("tests", artifact_location=tmp_path.as_uri())
    run = client.create_run(number).info.run_id
    monkeypatch.setenv("MLFLOW_RUN_ID", run)
    module = ModuleType("integrations")
    kind = module.MLflowCallback = type("MLflowCallback", (MLflowCallback,), {})  # type: ignore[attr-defined]
    worker._tolerate(module)

    def train(step: int, **arguments: object) -> str:
        monkeypatch.setenv("MLFLOW_RUN_ID", run)  # MLflow takes it away
        callback, state = kind(mlflow), SimpleNamespace(global_step=step, is_world_process_zero=True)
        with contextlib.ExitStack() as ending:
            ending.callback(mlflow.end_run)
            callback.setup(SimpleNamespace(run_name="first", to_dict=lambda: arguments), state, None)
            callback.on_log(None, state, None, {"loss": 1.0 * step})
            callback.on_train_end(None, state, None)
        return capfd.readouterr().err

    train(1, max_steps=60, seed=42)
    said = train(2, max_steps=40, seed=42, bf16=True)
    assert "cpt: MLflow keeps a run's first parameters; tags resumed.* have the new max_steps\n" in said
    assert "ERROR" not in said
    assert "have the new max_steps\n" in train(3, max_steps=60, seed=42)
    found = client.get_run(run).data
    assert found.params == {"max_steps": "60", "seed": "42", "bf16": "True"}
    assert {name: value for name, value in found.tags.items() if "resumed" in name} == {"resumed.max_steps": "60"}
    assert {row.step for row in client.get_metric_history(run, "loss")} == {1, 2, 3}
