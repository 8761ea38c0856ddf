"""What the workers' hook changes, on classes like those that it changes; the real ones are in test_e2e."""

from __future__ import annotations

from types import ModuleType, SimpleNamespace

from cpt_launcher import ray_worker


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
    ray_worker._evaluate_once(module)

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
