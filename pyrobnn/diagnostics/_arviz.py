"""All code that depends on the version of ArviZ.

ArviZ 0.x (Python 3.11) keeps results in its own ``InferenceData``, ArviZ 1.x (Python 3.12 and later) in an
:class:`xarray.DataTree`. Groups are :class:`xarray.Dataset` in both. ArviZ and
xarray take more than a second to import, so they are imported when first needed.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Mapping
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

if TYPE_CHECKING:
    import xarray as xr
    from arviz import InferenceData

__all__ = ["effective_sample_size", "energy_bfmi", "from_groups", "pareto_k", "split_rhat"]


def from_groups(groups: Mapping[str, xr.Dataset]) -> InferenceData:
    """An ``InferenceData`` (ArviZ 0.x) or ``DataTree`` (1.x) of the groups."""
    if _is_datatree():
        import xarray as xr

        tree: Any = xr.DataTree.from_dict({f"/{name}": dataset for name, dataset in groups.items()})
        return tree
    return _arviz().InferenceData(**groups)


def split_rhat(values: np.ndarray) -> np.ndarray:
    """Rank-normalized split R-hat of ``values[chain, draw, ...]``, shape ``[...]`` (Vehtari et al. 2021)."""
    return _arviz().rhat(_dataset(values))["values"].to_numpy()


def effective_sample_size(values: np.ndarray, method: Literal["bulk", "tail", "mean"]) -> np.ndarray:
    """Effective sample size of ``values[chain, draw, ...]``, shape ``[...]`` (Vehtari et al. 2021)."""
    return _arviz().ess(_dataset(values), method=method)["values"].to_numpy()


def energy_bfmi(energy: np.ndarray) -> np.ndarray:
    """Estimated Bayesian fraction of missing information of ``energy[chain, draw]``, shape ``[chain]``."""
    if _is_datatree():
        import xarray as xr

        return _arviz().bfmi(xr.Dataset({"energy": (["chain", "draw"], energy)}))["energy"].to_numpy()
    return np.asarray(_arviz().bfmi(energy))


def pareto_k(log_ratios: np.ndarray) -> float:
    """Tail index k of importance ratios, from their logarithms ``[S]`` (Vehtari et al. 2024).

    Ratios that are all equal have no tail and no index; they are the ideal case, reported as ``-inf``. Equal is what
    differs by less than one in a million: of an exact posterior, rounding alone would be given a tail.
    """
    log_ratios = np.asarray(log_ratios, dtype=np.float64)
    if np.ptp(log_ratios) < 1e-6:
        return -np.inf
    if _is_datatree():
        from arviz_stats.base import array_stats

        # 1.x expects the log likelihood of leave-one-out, whose negative is the log ratio.
        return float(array_stats.psislw(-log_ratios)[1])
    return float(_arviz().psislw(log_ratios.copy())[1])


@functools.cache
def _arviz() -> ModuleType:
    with warnings.catch_warnings():
        # 0.x announces its successor at import, which users of this library cannot change.
        warnings.simplefilter("ignore", FutureWarning)
        import arviz
    return arviz


def _is_datatree() -> bool:
    return int(_arviz().__version__.split(".")[0]) >= 1


def _dataset(values: np.ndarray) -> xr.Dataset:
    import xarray as xr

    rest = [f"dim_{i}" for i in range(values.ndim - 2)]
    return xr.Dataset({"values": (["chain", "draw", *rest], values)})
