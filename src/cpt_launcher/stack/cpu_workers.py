"""`llamafactory-cli` with CPU workers: `python -m cpt_launcher.stack.cpu_workers train FILE`.

LLaMA-Factory 0.9.3 builds its `ScalingConfig` with `use_gpu=True` (train/trainer_utils.py, get_ray_trainer),
and without a GPU Ray would then pick NCCL. Only that one class is replaced; all else is LLaMA-Factory's.
"""

from __future__ import annotations

from typing import Any


def main() -> None:
    """Run LLaMA-Factory's own command line with one CPU a worker."""
    import llamafactory.train.trainer_utils as trainer_utils
    from llamafactory.cli import main as llamafactory
    from ray.train import ScalingConfig

    def on_cpu(**given: Any) -> ScalingConfig:
        # The trainer actor only waits, so it takes no CPU of its own: two workers fit on two cores.
        cpu = {"use_gpu": False, "resources_per_worker": {"CPU": 1}, "trainer_resources": {"CPU": 0}}
        return ScalingConfig(**{**given, **cpu})

    trainer_utils.ScalingConfig = on_cpu
    llamafactory()


if __name__ == "__main__":
    main()
