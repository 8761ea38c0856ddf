"""Where everything lies on the shared storage."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Layout:
    """The paths of one run; all absolute, nothing here touches the disk."""

    storage: Path
    run: str

    @property
    def registry(self) -> Path:
        return self.storage / "dataset_info.json"

    @property
    def manifest(self) -> Path:
        return self.storage / ".cpt" / "manifest.json"

    @property
    def lock(self) -> Path:
        return self.storage / ".cpt" / "lock"

    @property
    def quarantine(self) -> Path:
        return self.storage / ".cpt" / "quarantine"

    def tokenized(self, name: str) -> Path:
        """A tokenised corpus, named by what it depends on."""
        return self.storage / "tokenized" / name

    def tokenized_marker(self, name: str) -> Path:
        """Written last: the tokenised corpus is complete."""
        return self.storage / "tokenized" / f"{name}.json"

    def model(self, name: str) -> Path:
        """Where a hub's model is fetched to."""
        return self.storage / "models" / name.replace("/", "--")

    def model_marker(self, name: str) -> Path:
        """Written last: the model is complete."""
        return self.model(name) / ".cpt-complete.json"

    def fetched(self, name: str) -> bool:
        """Whether a hub's model is on the storage, complete."""
        return not name.startswith("/") and self.model_marker(name).is_file()

    @property
    def run_dir(self) -> Path:
        return self.storage / self.run

    @property
    def train_yaml(self) -> Path:
        return self.run_dir / "cpt" / "train.yaml"

    @property
    def run_json(self) -> Path:
        return self.run_dir / "cpt" / "run.json"

    @property
    def reserve(self) -> Path:
        """Space that is given back when the run ends, so that a full disk takes its record."""
        return self.run_dir / "cpt" / ".reserve"

    @property
    def train_log(self) -> Path:
        return self.run_dir / "cpt" / "train.log"

    @property
    def events(self) -> Path:
        return self.run_dir / "cpt" / "events.jsonl"

    @property
    def heartbeat(self) -> Path:
        """Touched every few seconds while the run lasts."""
        return self.run_dir / "cpt" / "heartbeat"

    @property
    def token_counts(self) -> Path:
        """A file for each attempt that tokenised."""
        return self.run_dir / "cpt" / "tokens"

    @property
    def loss_plot(self) -> Path:
        return self.run_dir / "cpt" / "loss.png"

    @property
    def evaluation(self) -> Path:
        """What `cpt eval` found."""
        return self.run_dir / "cpt" / "eval.json"

    @property
    def run_lock(self) -> Path:
        return self.run_dir / "cpt" / "lock"

    @property
    def output(self) -> Path:
        return self.run_dir / "output"
