"""What an export has made."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["Exported"]


@dataclass(frozen=True)
class Exported:
    """A file with the posterior predictive as a program.

    Attributes:
        path: The file.
        format: ``"torch"`` or ``"onnx"``.
        inputs: Names of the tensors that an ONNX program takes.
        outputs: Names of what the program returns, in this order.
        num_samples: Number K of pinned draws; 1 for a point.
        seed: The seed of the draws: ``pb.predict(..., seed=seed)`` uses the same.
        precision: How weights are kept.
        num_bytes: Size of the file.
        errors: The largest absolute difference from :func:`pyrobnn.predict` on the example by name of the output, of
            the program as it was read back from the file.
    """

    path: Path
    format: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    num_samples: int
    seed: int | None
    precision: str
    num_bytes: int
    errors: dict[str, float]

    def __str__(self) -> str:
        errors = ", ".join(f"{name} {value:.1e}" for name, value in self.errors.items())
        return (
            f"{self.path}: {self.format}, {self.num_samples} draws in {self.precision}, {self.num_bytes / 2**20:.2f} "
            f"MiB; largest differences from predict on the example: {errors}"
        )

    def metadata(self) -> dict[str, Any]:
        """What is written into the file, for JSON."""
        kept = ("format", "inputs", "outputs", "num_samples", "seed", "precision")
        return {name: getattr(self, name) for name in kept}
