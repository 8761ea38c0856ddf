"""The shape of a decoder: what its memory and its arithmetic follow from."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from cpt_launcher.errors import ConfigError, Problem

TABLE = Path(__file__).parents[1] / "data" / "shapes.json"
# Whether q and k are normed, and how many norms a layer has (transformers 4.52, models/*/modeling_*.py).
_KINDS = {"llama": (False, 2), "mistral": (False, 2), "qwen2": (False, 2), "qwen3": (True, 2), "gemma3": (True, 4)}
_TIED = {"gemma3": True}  # the default of transformers where the file says nothing


@dataclass(frozen=True)
class Shape:
    """A decoder of `layers` layers. Sizes are counts of elements; `not_trained` parameters (a vision tower, which
    LLaMA-Factory freezes) are loaded and not trained. `norms` per layer; `normed_heads`: q and k are normed too.
    """

    name: str
    kind: str
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocabulary: int
    tied: bool
    normed_heads: bool
    norms: int
    bias: bool = False
    not_trained: int = 0

    @property
    def queries(self) -> int:
        """Elements of q, of all heads, for a token."""
        return self.heads * self.head_dim

    @property
    def keys(self) -> int:
        """Elements of k (or v), of all heads, for a token."""
        return self.kv_heads * self.head_dim

    @property
    def per_layer(self) -> int:
        """Parameters of a layer."""
        attention = self.hidden * (2 * self.queries + 2 * self.keys)
        attention += self.queries + 2 * self.keys if self.bias else 0
        norms = self.norms * self.hidden + (2 * self.head_dim if self.normed_heads else 0)
        return attention + 3 * self.hidden * self.intermediate + norms

    @property
    def head(self) -> int:
        """Parameters of the output head, which the embedding may share."""
        return self.vocabulary * self.hidden

    @property
    def trained(self) -> int:
        """Parameters that are trained."""
        return self.layers * self.per_layer + self.hidden + self.head * (1 if self.tied else 2)

    @property
    def loaded(self) -> int:
        """Parameters that are loaded."""
        return self.trained + self.not_trained


def known() -> dict[str, dict[str, object]]:
    """Shapes of common base models by their Hugging Face id, for those that cannot be read without a licence."""
    found: dict[str, dict[str, object]] = json.loads(TABLE.read_text(encoding="utf-8"))
    return found


def find(model: str, cache: Path | None = None) -> Shape:
    """The shape of a model: a folder with its config.json, one in the Hugging Face `cache`, or one of the table.

    Raises:
        ConfigError: it is neither, or no decoder that is known here.
    """
    files = [Path(model) / "config.json"] if model.startswith("/") else []
    if cache is not None and not files:
        files = sorted(cache.glob(f"models--{model.replace('/', '--')}/snapshots/*/config.json"))
    for path in files:
        if not path.is_file():
            hint = "check the path; cpt fetch-model fetches a model, cpt demo makes the demo's"
            raise ConfigError(Problem("there is no config.json of a model", str(path.parent), hint, "model-shape"))
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            if not isinstance(values, dict):
                raise ValueError("not a mapping")
            return read(model, values, str(path))
        except (OSError, ValueError, TypeError, ArithmeticError, RecursionError) as error:
            hint = "fetch the model again"
            raise ConfigError(Problem(f"not a model's config.json: {error}", str(path), hint, "model-shape")) from None
    table = known()
    if model not in table:
        hint = f"give a folder with its config.json (cpt fetch-model), or one of {', '.join(table)}"
        raise ConfigError(Problem(f"the shape of {model} is not known here", "model", hint, "model-shape"))
    return read(model, table[model], str(TABLE))


def read(name: str, values: Mapping[str, object], where: str) -> Shape:
    """A shape from the values of a config.json.

    Raises:
        ConfigError: an architecture that is not known here, or a value that is missing.
    """
    inner = values.get("text_config")
    text = {**values, **inner} if isinstance(inner, dict) else values
    kind = str(text.get("model_type", "")).removesuffix("_text")
    if kind not in _KINDS:
        hint = f"known are {', '.join(_KINDS)}"
        what = f"model_type {kind or 'missing'}: its memory is not known"
        raise ConfigError(Problem(what, where, hint, "model-shape"))
    normed, norms = _KINDS[kind]
    hidden, heads = _count(text, "hidden_size", where), _count(text, "num_attention_heads", where)
    given = values.get("not_trained", _vision(values))
    return Shape(
        name=name,
        kind=kind,
        hidden=hidden,
        layers=_count(text, "num_hidden_layers", where),
        heads=heads,
        kv_heads=_count(text, "num_key_value_heads", where, heads),
        head_dim=_count(text, "head_dim", where, hidden // heads),
        intermediate=_count(text, "intermediate_size", where),
        vocabulary=_count(text, "vocab_size", where),
        tied=bool(text.get("tie_word_embeddings", values.get("tie_word_embeddings", _TIED.get(kind, False)))),
        normed_heads=normed,
        norms=norms,
        bias=kind == "qwen2",
        not_trained=given if isinstance(given, int) else 0,
    )


def _count(values: Mapping[str, object], key: str, where: str, default: int | None = None) -> int:
    value = values.get(key) or default
    if not isinstance(value, int) or value < 1:
        raise ConfigError(Problem(f"{key} is missing", where, "a whole config.json", "model-shape"))
    return value


def _vision(values: Mapping[str, object]) -> int:
    """Parameters of Gemma 3's SigLIP tower and its projector (transformers, models/siglip and models/gemma3)."""
    tower, text = values.get("vision_config"), values.get("text_config")
    if not isinstance(tower, dict) or not isinstance(text, dict):
        return 0
    wide, inner = int(tower.get("hidden_size", 1152)), int(tower.get("intermediate_size", 4304))
    patch, image = int(tower.get("patch_size", 14)), int(tower.get("image_size", 896))
    layer = 4 * (wide * wide + wide) + 2 * wide * inner + inner + wide + 4 * wide
    embedding = 3 * patch * patch * wide + wide + (image // patch) ** 2 * wide
    projector = wide * int(text.get("hidden_size", 2560)) + wide
    return int(tower.get("num_hidden_layers", 27)) * layer + embedding + 2 * wide + projector
