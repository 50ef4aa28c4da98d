"""Training checkpoints: written to a temporary file, then renamed, so that a kill never leaves half a file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch


@dataclass
class Checkpoint:
    """Everything a run needs to continue; the data position is the token count itself."""

    tokens: int
    recipe: dict[str, Any]
    model: dict[str, torch.Tensor]
    optimizers: dict[str, Any] | None

    def save(self, run_dir: Path) -> Path:
        """Write `checkpoint.pt`; the one before is kept as `checkpoint.previous.pt`."""
        run_dir.mkdir(parents=True, exist_ok=True)
        path, temporary = run_dir / "checkpoint.pt", run_dir / "checkpoint.tmp.pt"
        torch.save(vars(self), temporary)
        if path.exists():
            path.replace(run_dir / "checkpoint.previous.pt")
        temporary.replace(path)
        return path

    @classmethod
    def load(cls, run_dir: Path) -> Checkpoint | None:
        """The newest complete checkpoint of a run, or None when it has none."""
        for name in ("checkpoint.pt", "checkpoint.previous.pt"):
            if (run_dir / name).exists():
                return cls(**torch.load(run_dir / name, map_location="cpu", weights_only=True))
        return None
