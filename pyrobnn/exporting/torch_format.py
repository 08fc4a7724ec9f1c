"""torch's own format, ``.pt2``: ``torch.export.load(path).module()(x)``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram

__all__ = ["run_torch", "write_torch"]

METADATA = "pyrobnn.json"


def write_torch(graph: ExportedProgram, path: Path, metadata: dict[str, Any]) -> None:
    """Writes a graph, with what is known of it as the extra file ``pyrobnn.json``."""
    torch.export.save(graph, path, extra_files={METADATA: json.dumps(metadata)})


def run_torch(path: Path, x: Any) -> tuple[Tensor, ...]:
    """The outputs of the program in a file."""
    with torch.no_grad():
        found: tuple[Tensor, ...] = tuple(torch.export.load(path).module()(x))
    return found
