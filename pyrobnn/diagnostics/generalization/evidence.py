r"""Estimates of the log evidence of one model side by side.

* Laplace: a Gaussian at the mode; neither bound nor unbiased, exact where the posterior is Gaussian.
* ELBO: :math:`E_q[\log p(D, w) - \log q(w)]`, a lower bound, exact where q is the posterior.
* Importance weighted: :math:`\log \frac1S \sum_s p(D, w_s) / q(w_s)`, a lower bound in expectation, above the ELBO.
* Annealed importance sampling (:mod:`~pyrobnn.diagnostics.generalization.annealing`): the reference for small networks.

Burda, Grosse & Salakhutdinov, *Importance weighted autoencoders* (2016); MacKay (1992) for Laplace.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from pyrobnn.core.arguments import check_int
from pyrobnn.core.explanations import explained
from pyrobnn.diagnostics._draws import undisturbed
from pyrobnn.diagnostics.generalization.annealing import AnnealedEvidence, whole_data
from pyrobnn.diagnostics.importance import log_ratios
from pyrobnn.guides.base import Guide, check_guide
from pyrobnn.guides.laplace import Laplace

__all__ = ["Evidence", "evidence_estimates"]


@dataclass(frozen=True)
class Evidence:
    """One estimate.

    Attributes:
        value: Log evidence in nats.
        standard_error: Monte Carlo error, 0 where there is none.
        kind: ``"approximation"``, ``"lower bound"`` or ``"upper bound"``.
    """

    value: float
    standard_error: float
    kind: str

    def __str__(self) -> str:
        error = f" ± {self.standard_error:.2g}" if self.standard_error else ""
        return f"{self.value:.2f}{error} ({self.kind})"


@explained
def evidence_estimates(
    model: Any,
    *data: Any,
    laplace: Laplace | None = None,
    guide: Guide | None = None,
    annealed: AnnealedEvidence | None = None,
    num_samples: int = 1000,
) -> dict[str, Evidence]:
    """The log evidence by each of what is given: ``evidence_estimates(model, x, y, laplace=..., guide=...)``.

    Args:
        model: The model.
        *data: Its arguments: all of the data.
        laplace: A fitted :class:`~pyrobnn.guides.Laplace` of all weights.
        guide: A fitted guide with a density, such as :class:`~pyrobnn.guides.MeanField`.
        annealed: Result of :func:`annealed_importance_sampling`.
        num_samples: Draws of the guide.

    Returns:
        Estimates by name, in the order ``"Laplace"``, ``"ELBO"``, ``"importance weighted"``, ``"annealed"``.

    Raises:
        TypeError: If something given is of another kind.
        ValueError: If nothing is given, Laplace leaves weights out, a guide has no density, or the data are not all.
    """
    check_int("num_samples", num_samples, 2)
    if laplace is None and guide is None and annealed is None:
        raise ValueError("guide: nothing to estimate by; pass laplace=, guide= or annealed=.")
    found: dict[str, Evidence] = {}
    if laplace is not None:
        found["Laplace"] = _by_laplace(model, laplace)
    if guide is not None:
        check_guide(model, guide)
        if not guide.facts.has_density:
            raise ValueError(f"guide: {type(guide).__name__} has no density of all sites, and so no ELBO.")
        pieces = whole_data(model, data)
        with undisturbed(model):
            ratios = log_ratios(model, guide, pieces, list(guide.layout), num_samples)
        found["ELBO"] = Evidence(float(ratios.mean()), float(ratios.std()) / num_samples**0.5, "lower bound")
        relative = (ratios - ratios.max()).exp()
        error = float(relative.std() / relative.mean()) / num_samples**0.5
        value = float(ratios.logsumexp(0)) - math.log(num_samples)
        found["importance weighted"] = Evidence(value, error, "lower bound")
    if annealed is not None:
        if not isinstance(annealed, AnnealedEvidence):
            raise TypeError(
                f"annealed: expected the result of annealed_importance_sampling, got {type(annealed).__name__}."
            )
        kind = "upper bound" if annealed.reverse else "lower bound"
        found["annealed"] = Evidence(annealed.log_evidence, annealed.standard_error, kind)
    return found


def _by_laplace(model: Any, laplace: Laplace) -> Evidence:
    check_guide(model, laplace, argument="laplace")
    if not laplace.facts.is_ready:
        raise ValueError("laplace: it is no distribution before it is fitted; call its fit() first.")
    if left := [name for name in laplace.layout if name not in laplace.covered]:
        raise ValueError(
            f"laplace: {left[0]!r} is a point of it, so its evidence is not that of the whole model; use "
            "structure='full', 'kronecker' or 'diagonal'."
        )
    return Evidence(laplace.log_evidence(), 0.0, "approximation")
