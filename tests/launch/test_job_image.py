"""The packages of a job's image, and its Containerfile as a whole."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable
from pathlib import Path

import pytest

from cpt_launcher import shipped
from cpt_launcher.errors import NotReadyError
from cpt_launcher.launch import bundle, job_anyscale, job_image

from ..conftest import REPOSITORY, Outcome

Cpt = Callable[..., Outcome]
NEEDED = [
    "plotext<6,>=5.3", "typer>=0.15",
    "liger-kernel<0.8.5,>=0.8.2; extra == 'fast'", "gcsfs>=2024.6; extra == 'gs'", "s3fs>=2024.6; extra == 's3'",
    "llamafactory==0.9.3; extra == 'train'", "hf_transfer>=0.1.9; extra == 'train'",
    "ray[train]==2.48.*; extra == 'train'", "torch<2.14,>=2.10; extra == 'train'", "setuptools<82; extra == 'train'",
    "tomli; python_version < '3.11'", "pytest>=8; extra == 'dev'", "zstandard>=0.22; extra == 'zst'",
]  # fmt: skip
PINS = {
    "plotext": "5.3.2", "typer": "0.29.2", "liger-kernel": "0.8.4", "s3fs": "2025.3.0", "llamafactory": "0.9.3",
    "hf-transfer": "0.1.9", "zstandard": "0.25.0",
}  # fmt: skip
PLAIN = """FROM anyscale/ray-llm:2.48.0-py311-cu128
# A tag can be moved. A digest cannot: FROM anyscale/ray-llm@sha256:... (docs/security.md)

RUN pip install --no-cache-dir \\
    hf_transfer==0.1.9 \\
    llamafactory==0.9.3 \\
    plotext==5.3.2 \\
    typer==0.29.2
"""
ALL = """FROM anyscale/ray-llm:2.48.0-py311-cu128
# A tag can be moved. A digest cannot: FROM anyscale/ray-llm@sha256:... (docs/security.md)

RUN pip install --no-cache-dir \\
    hf_transfer==0.1.9 \\
    liger-kernel==0.8.4 \\
    llamafactory==0.9.3 \\
    plotext==5.3.2 \\
    s3fs==2025.3.0 \\
    typer==0.29.2 \\
    zstandard==0.25.0 \\
    "gcsfs>=2024.6"

# Not pinned: this package knows no version of it that was tested.
RUN pip install --no-cache-dir \\
    wandb \\
    bitsandbytes

# Not pinned: compiled for the image's own torch.
RUN pip install --no-cache-dir --no-build-isolation \\
    flash-attn
"""


@pytest.mark.parametrize(
    ("train", "data", "expected"),
    [
        ({}, ["/work/corpus.jsonl", "https://x.org/a.jsonl.gz"], PLAIN),
        ({"enable_liger_kernel": False, "flash_attn": "auto", "optim": "adamw_torch", "report_to": "none"}, [], PLAIN),
        (
            {"enable_liger_kernel": True, "flash_attn": "fa2", "optim": "adamw_bnb_8bit", "report_to": ["wandb"]},
            ["s3://bucket/a.jsonl", "gs://bucket/a.jsonl.zst"],
            ALL,
        ),
    ],
)
def test_the_whole_text(
    monkeypatch: pytest.MonkeyPatch, train: dict[str, object], data: list[str], expected: str
) -> None:
    monkeypatch.setattr(importlib.metadata, "requires", lambda _: NEEDED)
    monkeypatch.setattr(shipped, "pins", lambda: PINS)
    assert job_image.containerfile(job_image.packages(train, data)) == expected


@pytest.mark.parametrize(
    ("data", "extra"),
    [
        ("s3://b/a.jsonl", ["s3"]),
        ("s3a://b/a.jsonl", ["s3"]),
        ("gcs://b/a.jsonl", ["gs"]),
        ("hf://datasets/a/b.parquet", ["hf"]),
        ("https://x.org/a.jsonl.zst?signature=1", ["zst"]),
        ("/here/a.jsonl.zst", ["zst"]),
        ("s3://b/folder/", ["s3", "zst"]),
        ("https://x.org/a.jsonl.gz", []),
    ],
)
def test_what_data_takes(data: str, extra: list[str]) -> None:
    assert job_image.extras({}, [data]) == tuple(sorted(("train", *extra)))


def test_the_image_has_this_packages_own_requirements_and_the_pins_know_them() -> None:
    """Those of the installed package, which pip made of pyproject.toml."""
    everything = [f"{scheme}://b/" for scheme in ("s3", "hf")]
    found = job_image.packages({"enable_liger_kernel": True}, everything)
    names = {pin.partition("==")[0].partition("[")[0] for pin in found.pinned}
    assert names >= {
        "typer", "pyyaml", "jinja2", "fsspec", "orjson", "plotext", "llamafactory", "deepspeed", "hf-transfer",
        "mlflow", "liger-kernel", "s3fs", "huggingface-hub", "zstandard",
    }  # fmt: skip
    assert not names & {"ray", "torch", "setuptools", "pytest"}
    assert found.loose == ()


def test_extras_that_there_are() -> None:
    tomllib = pytest.importorskip("tomllib")
    have = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    data = [f"{scheme}://b/a.zst" for scheme in ("s3", "gs", "hf")]
    assert set(job_image.extras({"enable_liger_kernel": True}, data)) <= set(have)


def test_a_package_that_is_only_on_the_path(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> None:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "requires", absent)
    with pytest.raises(NotReadyError, match="is not installed"):
        job_image.packages({}, [])


def test_a_job_has_what_its_config_and_its_data_take(cpt: Cpt, workspace: Path) -> None:
    """The shipped fast recipe, and an entry whose data is elsewhere."""
    entry = '{"far": {"source": "gs://bucket/a.jsonl.zst", "columns": {"prompt": "text"}}}'
    (workspace / "dataset-configs" / "dataset_info.json").write_text(entry)
    config = REPOSITORY / "configs" / "gemma3_4b_fast.yaml"
    arguments = ("job", config, "storage=/mnt/user_storage", "dataset=far", "train.flash_attn=fa2", "--out", "made")
    done = cpt(*arguments)
    assert done.code == 0, done.err
    text = (workspace / "made" / "Containerfile").read_text()
    for wanted in ("liger-kernel==", "zstandard==", "gcsfs", "flash-attn"):
        assert wanted in text
    assert "not pinned in the Containerfile: gcsfs>=2024.6, flash-attn" in done.err
    assert "pinned" not in cpt(*arguments[:-1], "other", "--image", "me/image:1").err


def test_small_data_goes_along_and_is_read_by_the_job(workspace: Path) -> None:
    (workspace / "dataset-configs" / "corpus.jsonl.zst").write_bytes(b"(zstd)")
    entry = '{"corpus": {"file_name": "corpus.jsonl.zst"}, "bucket": {"cloud_file_name": "s3://b/a.jsonl"}}'
    (workspace / "dataset-configs" / "dataset_info.json").write_text(entry)
    made = bundle.make(Path("my.yaml"), ["dataset=[corpus, bucket]", "storage=/mnt/user_storage"])
    packages = job_anyscale.packages(made)
    assert {pin.partition("==")[0] for pin in packages.pinned} >= {"zstandard", "s3fs"}
