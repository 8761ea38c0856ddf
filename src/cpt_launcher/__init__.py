"""A thin launcher for continued pre-training with LLaMA-Factory, Ray and DeepSpeed."""

__version__ = "0.1.0"
