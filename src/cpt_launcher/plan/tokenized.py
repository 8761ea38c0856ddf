"""What a tokenised corpus depends on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from cpt_launcher.config import arguments as schema
from cpt_launcher.layout import Layout
from cpt_launcher.staging import manifest
from cpt_launcher.staging.dataset import Copy

# Arguments outside LLaMA-Factory's data group that change tokens or their order.
_ALSO = ("seed", "use_fast_tokenizer", "split_special_tokens", "new_special_tokens", "resize_vocab", "stage")
_NOT = ("overwrite_cache", "tokenized_path", "data_shared_file_system", "dataset_dir", "media_dir")
_TOKENIZER_FILES = ("tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab*", "merges.txt", "*.model")


def key(
    layout: Layout,
    copies: Sequence[Copy],
    entries: Mapping[str, Mapping[str, object]],
    model: str,
    train: Mapping[str, object],
) -> str | None:
    """A hash of all that the tokens depend on: the data's bytes, registry entries, tokenizer, and arguments.

    None while some of the data is not on the storage as the manifest says. Data of the storage's own registry that cpt
    did not put there goes by size and time.
    """
    known = manifest.read(layout)
    hashes: dict[str, str] = {}
    for copy in copies:
        name = copy.cloud or copy.target.relative_to(layout.storage).as_posix()
        record = known.get(name)
        if record is not None and (copy.cloud is not None or record.matches(copy.target)):
            hashes[name] = record.sha256
        elif copy.there:  # somebody else put it there, and nobody counted or hashed it
            now = copy.target.stat()
            hashes[name] = f"{now.st_size} bytes of {now.st_mtime_ns}"
        else:
            return None
    arguments = {name: value for name, value in train.items() if name not in _NOT and (_is_data(name) or name in _ALSO)}
    parts = [schema.load().version, hashes, entries, arguments, _tokenizer(model)]
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _is_data(name: str) -> bool:
    argument = schema.load().arguments.get(name)
    return argument is not None and argument.group == "data"


def _tokenizer(model: str) -> object:
    """The tokenizer's files by their hashes where the model is a folder, else the hub's name for it."""
    folder = Path(model)
    if not model.startswith("/"):
        return model
    files = sorted({path for pattern in _TOKENIZER_FILES for path in folder.glob(pattern) if path.is_file()})
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
