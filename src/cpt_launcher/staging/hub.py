"""A model of the Hugging Face hub to the storage, once, so that workers neither download it nor need a token."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

from cpt_launcher import disk
from cpt_launcher.errors import NotReadyError, Problem
from cpt_launcher.layout import Layout
from cpt_launcher.staging import model_files

# Other frameworks' weights, and copies in formats that transformers does not load.
_NEVER = ["*.pth", "*.gguf", "*.h5", "*.msgpack", "*.onnx", "original/*", "onnx/*"]


def fetch_model(model: str, storage: Path, report: Callable[[str], None]) -> Path:
    """Download a model to `<storage>/models`; what is there and complete is not asked for again.

    Raises:
        NotReadyError: it is a folder, gated, unknown, the hub cannot be reached, or the model writes elsewhere.
        StorageError: the storage is absent or not writable.
    """
    if model.startswith("/"):
        raise NotReadyError(Problem("the model is a folder already", model, "there is nothing to fetch"))
    disk.require_storage(storage)
    layout = Layout(storage, "")
    folder = layout.model(model)
    if layout.fetched(model):
        report(f"identical {folder}")
        return folder
    disk.require_no_foreign_links(storage, folder)
    revision = _download(model, folder)
    if found := model_files.check(folder):
        raise NotReadyError(*found)
    disk.write_json(layout.model_marker(model), {"model": model, "revision": revision})
    report(f"created   {folder}")
    return folder


def check_access(model: str) -> None:
    """Ask the hub whether this account may download a model, unless the local cache has it.

    Raises:
        NotReadyError: it may not, or there is no such model, or the hub cannot be reached, or what the cache has of it
            writes elsewhere.
    """
    hint = "check the network; where there is none, set model: to a folder (`cpt fetch-model` makes one on the storage)"
    with _hub_errors(model, "the hub could not be asked for the model", hint):
        from huggingface_hub import HfApi, try_to_load_from_cache

        cached = try_to_load_from_cache(model, "config.json")
        if not isinstance(cached, str):
            HfApi().auth_check(model)
        elif found := model_files.check(Path(cached).parent):
            raise NotReadyError(*found)


def _download(model: str, folder: Path) -> str:
    hint = "check the network and start again: what has arrived is kept"
    with _hub_errors(model, "the hub did not send the model", hint):
        from huggingface_hub import HfApi, constants, snapshot_download

        info = HfApi().model_info(model)
        names = [file.rfilename for file in info.siblings or []]
        if out := model_files.strays(names):
            what = f"the model {model} has files outside its folder: {', '.join(repr(name[:60]) for name in out[:3])}"
            raise NotReadyError(Problem(what, constants.ENDPOINT, "do not use this model"))
        ignored = [*_NEVER, "*.bin"] if any(name.endswith(".safetensors") for name in names) else _NEVER
        snapshot_download(model, revision=info.sha, local_dir=folder, ignore_patterns=ignored)
        return str(info.sha)


@contextlib.contextmanager
def _hub_errors(model: str, failed: str, then: str) -> Iterator[None]:
    """The hub's errors as ours; `failed` and `then` are what a broken connection means, and what to do about it."""
    try:
        from huggingface_hub import constants, errors
    except ImportError:
        hint = "pip install 'cpt-launcher[hf]'"
        raise NotReadyError(Problem("huggingface_hub is not installed", "this environment", hint)) from None
    page = f"{constants.ENDPOINT}/{model}"
    try:
        yield
    except errors.GatedRepoError:
        hint = f"accept its licence on {page}, then export HF_TOKEN=... of that account"
        raise NotReadyError(
            Problem(f"the model {model} is gated, and this account has no access", page, hint)
        ) from None
    except errors.RepositoryNotFoundError:
        hint = "check the name; if it is private, export HF_TOKEN=... of an account that sees it"
        raise NotReadyError(Problem(f"the hub knows no model {model}", page, hint)) from None
    except (errors.HFValidationError, ValueError) as error:
        raise NotReadyError(
            Problem(
                f"not a model's name: {error}",
                model,
                "model: owner/name as on the hub, or a folder, which begins with / or .",
            )
        ) from None
    except OSError as error:  # the hub's HTTP errors are requests', and those are OSErrors
        raise NotReadyError(Problem(f"{failed} ({_reason(error)})", page, then)) from None


def _reason(error: OSError) -> str:
    """The reason behind a network error; urllib3 and requests wrap it twice."""
    inner = error.args[0] if error.args else error
    cause = getattr(inner, "reason", None) or error
    return f"{type(cause).__name__}: {cause}".splitlines()[0]
