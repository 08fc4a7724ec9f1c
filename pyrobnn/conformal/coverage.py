r"""Coverage of sets and intervals, as a whole and where it may fail: by class, by size and by uncertainty.

Conformal prediction promises coverage on average over inputs. Whether it also holds where the network is unsure is what
a posterior can improve, and what the rows by decile of uncertainty show. The error of a share is that of n independent
data, :math:`\sqrt{p (1 - p) / n}` with the Wilson interval's center.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from pyrobnn.core.arguments import check_positive_int
from pyrobnn.core.explanations import explained
from pyrobnn.metrics.wilson import wilson_interval

__all__ = ["CoverageReport", "CoverageRow", "coverage_of_intervals", "coverage_of_sets"]

_SIZES = 10


@dataclass(frozen=True)
class CoverageRow:
    """One part of the data.

    Attributes:
        part: Which one.
        num_data: Number of its data.
        coverage: The share whose target is in its set.
        low: Lower end of the 95 % Wilson interval of the share.
        high: Upper end.
        size: Mean number of classes, or median length of intervals.
    """

    part: str
    num_data: int
    coverage: float
    low: float
    high: float
    size: float


@dataclass(frozen=True)
class CoverageReport:
    """Coverage of all data and of parts; prints as a table.

    Attributes:
        rows: All data first, then the parts.
    """

    rows: list[CoverageRow]

    def __getitem__(self, part: str) -> CoverageRow:
        """The row of ``part``, such as ``"all"`` or ``"class 3"``.

        Raises:
            KeyError: If there is none; the message lists the parts.
        """
        for row in self.rows:
            if row.part == part:
                return row
        raise KeyError(f"no part {part!r}; there are {', '.join(repr(row.part) for row in self.rows)}.")

    @property
    def least(self) -> CoverageRow:
        """The part of least coverage."""
        return min(self.rows, key=lambda row: row.coverage)

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers and strings, for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        width = max(len(row.part) for row in self.rows)
        lines = [f"{'part':<{width}}  {'n':>6}  coverage  95 % interval    size"]
        for row in self.rows:
            shares = f"{row.coverage:>8.3f}  {row.low:.3f} – {row.high:.3f}"
            lines.append(f"{row.part:<{width}}  {row.num_data:>6}  {shares}  {row.size:>6.3g}")
        return "\n".join(lines)


@explained
def coverage_of_sets(
    sets: Tensor, labels: Tensor, *, uncertainty: Tensor | None = None, bins: int = 10
) -> CoverageReport:
    """Coverage of sets of classes: of all data, by class, by size of the set and by bin of uncertainty.

    Args:
        sets: Which classes each set holds, bool ``[N, C]``.
        labels: Labels ``[N]``.
        uncertainty: A number for each input ``[N]``, such as ``prediction.total`` or ``prediction.epistemic``.
        bins: Number of equally full bins of it.

    Raises:
        TypeError: If something is no tensor of its kind.
        ValueError: If shapes do not fit, or a label is no class.
    """
    if not isinstance(sets, Tensor) or sets.dtype != torch.bool:
        raise TypeError("sets: expected a bool tensor [N, C], as predict_set returns it.")
    if sets.dim() != 2 or not len(sets):
        raise ValueError(f"sets: expected shape [N, C] with at least one input, got {tuple(sets.shape)}.")
    if not isinstance(labels, Tensor) or labels.is_floating_point() or labels.is_complex():
        raise TypeError("labels: expected a tensor of integers [N].")
    if labels.shape != sets.shape[:1]:
        raise ValueError(f"labels: expected shape {tuple(sets.shape[:1])}, got {tuple(labels.shape)}.")
    labels = labels.long().to(sets.device)
    if int(labels.min()) < 0 or int(labels.max()) >= sets.shape[1]:
        raise ValueError(f"labels: expected classes from 0 to {sets.shape[1] - 1}.")
    covered, sizes = sets.gather(1, labels.unsqueeze(1)).squeeze(1), sets.sum(1).double()
    parts = {"all": torch.ones_like(covered)}
    parts |= {f"class {c}": labels == c for c in labels.unique().tolist()}
    found = sizes.unique().tolist()
    if len(found) <= _SIZES:
        parts |= {f"size {int(size)}": sizes == size for size in found}
    else:
        parts |= _bins("size", sizes, _SIZES)
    return _report(covered, sizes, parts, uncertainty, bins, median=False)


@explained
def coverage_of_intervals(
    lower: Tensor, upper: Tensor, targets: Tensor, *, uncertainty: Tensor | None = None, bins: int = 10
) -> CoverageReport:
    """Coverage of intervals: of all targets, by bin of length (where lengths differ) and by bin of uncertainty.

    Args:
        lower: Lower ends ``[N, ...]``.
        upper: Upper ends ``[N, ...]``.
        targets: Targets ``[N, ...]``; those that are NaN are left out.
        uncertainty: A number for each target, such as ``prediction.total`` or ``prediction.epistemic``.
        bins: Number of equally full bins of lengths and of it.

    Raises:
        TypeError: If something is no tensor.
        ValueError: If shapes do not fit, no target was observed, or a lower end is above its upper end.
    """
    for name, value in (("lower", lower), ("upper", upper), ("targets", targets)):
        if not isinstance(value, Tensor):
            raise TypeError(f"{name}: expected a tensor, got {type(value).__name__}.")
        if value.shape != lower.shape:
            raise ValueError(f"{name}: expected shape {tuple(lower.shape)}, got {tuple(value.shape)}.")
    if bool((lower > upper).any()):
        raise ValueError("lower: an end is above its upper one; pass the lower ends first.")
    check_positive_int("bins", bins)
    observed = ~targets.isnan()
    if not bool(observed.any()):
        raise ValueError("targets: none of them was observed.")
    if uncertainty is not None:
        _check_uncertainty(uncertainty, targets.shape)
        uncertainty = uncertainty[observed]
    lower, upper, y = lower[observed], upper[observed], targets[observed]
    covered, lengths = (lower <= y) & (y <= upper), (upper - lower).double()
    parts = {"all": torch.ones_like(covered)}
    if float(lengths.max() - lengths.min()) > 1e-6 * float(lengths.abs().max()):  # NaN of infinite ones: equal
        parts |= _bins("length", lengths, bins)
    return _report(covered, lengths, parts, uncertainty, bins, median=True)


def _report(
    covered: Tensor, sizes: Tensor, parts: dict[str, Tensor], uncertainty: Tensor | None, bins: int, *, median: bool
) -> CoverageReport:
    check_positive_int("bins", bins)
    if uncertainty is not None:
        _check_uncertainty(uncertainty, covered.shape)
        parts |= _bins("uncertainty", uncertainty.double().to(covered.device), bins)
    rows = []
    for part, mask in parts.items():
        count, share = int(mask.sum()), float(covered[mask].double().mean())
        size = float(sizes[mask].median() if median else sizes[mask].mean())
        low, high = wilson_interval(torch.tensor(share, dtype=torch.float64), torch.tensor(count))
        rows.append(CoverageRow(part, count, share, float(low), float(high), size))
    return CoverageReport(rows)


def _check_uncertainty(uncertainty: Tensor, shape: torch.Size) -> None:
    if not isinstance(uncertainty, Tensor):
        raise TypeError(f"uncertainty: expected a tensor, got {type(uncertainty).__name__}.")
    if uncertainty.shape != shape:
        raise ValueError(f"uncertainty: expected shape {tuple(shape)}, got {tuple(uncertainty.shape)}.")


def _bins(name: str, values: Tensor, bins: int) -> dict[str, Tensor]:
    """Masks of equally full bins, from the smallest values to the largest; ties are split by their order."""
    place = values.argsort(stable=True).argsort() * bins // len(values)
    width = len(str(bins))
    return {f"{name} {b + 1:>{width}}/{bins}": place == b for b in place.unique().tolist()}
