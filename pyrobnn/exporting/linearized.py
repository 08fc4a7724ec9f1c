r"""The network's linearization at a mode as a program.

.. math::  f(x) = f(x; \hat w) + J(x)\, v

for directions v: those of K drawn weights, :math:`v_k = w_k - \hat w`, or, where the prediction has a closed form,
the columns of a root S of the covariance, with which :math:`J \Sigma J^\top = (J S)(J S)^\top`. Products with the
Jacobian are derivatives of :math:`J^\top u` by u, so that reverse mode alone is needed. See
:mod:`pyrobnn.prediction.linearized`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.func import vjp, vmap

from pyrobnn.core.pyro_compat import full_name
from pyrobnn.exporting.errors import ExportError
from pyrobnn.exporting.pinned import pinned_weights
from pyrobnn.exporting.program import Program
from pyrobnn.exporting.weights import FrozenTensors
from pyrobnn.model.likelihoods.predictions import Prediction
from pyrobnn.model.substitution import SubstituteMessenger
from pyrobnn.prediction.linearized import LinearizedPredictor

__all__ = ["LinearizedProgram"]


class LinearizedProgram(Program):
    """The linearized network in closed form, or under K draws.

    Args:
        predictor: The predictor of the model.
        options: Further arguments of :class:`~pyrobnn.exporting.program.Program`.

    Raises:
        ExportError: If a site of the likelihood is linearized, or the covariance is too large for ``max_bytes`` of the
            predictor.
    """

    has_derivatives = True

    def __init__(self, predictor: LinearizedPredictor, **options: Any) -> None:
        model, samples = predictor.model, predictor.options.num_samples
        weights = pinned_weights(model, [{name: value.unsqueeze(0) for name, value in predictor.values.items()}])
        super().__init__(weights, predictor.likelihood, model.output, samples, **options)
        net, covered = model.net, list(predictor.gaussian.covered)
        names = {full_name(net, site): aliases for site, aliases in net.parameter_names.items()}
        if unknown := [site for site in covered if site not in names]:
            raise ExportError(f"guide: the site {unknown[0]!r} is none of the network's; pass predictor='weights'.")
        self.aliases = [names[site] for site in covered]
        self.has_closed_form = predictor.likelihood.has_closed_form
        sizes = [predictor.values[site].shape for site in covered]
        if self.has_closed_form:
            columns = _root(predictor).T
            parts = [part.reshape(-1, *size) for part, size in zip(_split(columns, sizes), sizes, strict=True)]
        else:
            chunks = list(predictor.draws)
            parts = [torch.cat([chunk[site] for chunk in chunks]) - predictor.values[site] for site in covered]
        directions = {str(index): part for index, part in enumerate(parts)}
        self.directions = FrozenTensors(directions, options.get("precision", "float32"), leading=1)
        self.latents = FrozenTensors({name: value[0] for name, value in weights.latents.items()}, "float32")

    def prediction(self, x: Any) -> Prediction:
        """The prediction, in closed form where there is one."""
        outputs, moved = self._moved(x)
        with SubstituteMessenger(self.latents()):
            if self.has_closed_form:
                half = moved.reshape(*moved.shape[:2], -1).movedim(0, -1)
                found: Prediction | None = self.likelihood.closed_form(
                    outputs, torch.bmm(half, half.mT), self.num_samples
                )
                assert found is not None
                return found
            reduction = self.reduction()
            reduction.add(vmap(reduction.summary)(outputs + moved))
            return reduction.finish(None)

    def _moved(self, x: Any) -> tuple[Tensor, Tensor]:
        """The outputs at the mode ``[B, …]``, and their changes along the directions ``[R, B, …]``."""
        shared, directions = self.shared(), self.directions()
        mode = [shared[aliases[0]] for aliases in self.aliases]

        def run(values: list[Tensor]) -> Tensor:
            own = {name: value for names, value in zip(self.aliases, values, strict=True) for name in names}
            return self.outputs({**shared, **own}, x)

        outputs, pull = vjp(run, mode)  # type: ignore[misc]  # a third value comes with has_aux
        _, push = vjp(lambda dual: pull(dual)[0], torch.zeros_like(outputs))  # type: ignore[misc]
        along = [directions[str(index)] for index in range(len(mode))]
        return outputs, vmap(lambda *values: push(list(values))[0])(*along)


def _root(predictor: LinearizedPredictor) -> Tensor:
    """``S [n, n]`` with ``S Sᵀ = Σ``, by the sites that the Gaussian covers."""
    like = next(iter(predictor.derivatives.weights.values()))
    size = predictor.derivatives.size
    needed = size * size * like.element_size()
    if needed > predictor.options.max_bytes:
        raise ExportError(
            f"guide: the covariance of {size} weights needs {needed / 2**20:.0f} MiB in the program, beyond max_bytes "
            f"of {predictor.options.max_bytes / 2**20:.0f} MiB; raise max_bytes, or pass predictor='weights'."
        )
    covariance = predictor.gaussian.product(torch.eye(size, dtype=like.dtype, device=like.device)).double()
    values, vectors = torch.linalg.eigh((covariance + covariance.mT) / 2)
    return (vectors * values.clamp_min(0.0).sqrt()).to(like.dtype)


def _split(columns: Tensor, sizes: list[torch.Size]) -> list[Tensor]:
    return list(columns.split([size.numel() for size in sizes], 1))
