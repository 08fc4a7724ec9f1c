"""Gradients of the potential for all chains, by the machinery that trains points and ensembles of them.

One chain is a :class:`~pyrobnn.guides.Map`, several are the members of a :class:`~pyrobnn.guides.DeltaMixture`, in
unconstrained space with Jacobians; so small networks run all chains in one vmapped pass, and large ones one after
another.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import pyro
import torch
from torch import Tensor, nn

from pyrobnn import random_state
from pyrobnn.elbo import MeanFieldELBO
from pyrobnn.elbo.parts import NonFiniteLossError
from pyrobnn.guides.delta_mixture import DeltaMixture
from pyrobnn.guides.map import Map
from pyrobnn.guides.member_buffers import MemberBuffers

__all__ = ["PotentialGradient"]


class PotentialGradient:
    """The gradient of U at the chains' present values.

    Args:
        model: The model, as it is to be evaluated.
        start: Starting points ``[C, P]``.
        args: Arguments of the model: the first batch.
        vmap: Whether all chains go in one vectorised pass, as for :class:`~pyrobnn.guides.DeltaMixture`.

    Attributes:
        flat: The chains' values ``[C, P]``; write into it.
    """

    def __init__(
        self, model: Callable[..., Any], start: Tensor, args: tuple[Any, ...], vmap: bool | Literal["auto"] = "auto"
    ) -> None:
        self.model = model
        example = None if hasattr(model, "sample_latents") else args
        with random_state.kept(start.device):
            if len(start) == 1:
                self.guide: Map | DeltaMixture = Map(model, "prior_mean", jacobian=True, example=example)
            else:
                # Statistics are the model's own and frozen: the chains have one posterior.
                self.guide = DeltaMixture(model, len(start), "prior", jacobian=True, example=example)
                self.guide.buffers_by_member = MemberBuffers(nn.Identity(), len(start))
                self.guide.vmap = vmap
        self.guide.scores_prior = False
        self.guide.to(device=start.device, dtype=start.dtype)
        self.flat = self.guide.flat_loc.data.view(start.shape)
        self.flat.copy_(start)
        self.elbo = MeanFieldELBO()
        self._meet(args)

    def __call__(self, args: tuple[Any, ...]) -> Tensor:
        """The gradient ``[C, P]`` that one batch gives, in a buffer that the next call overwrites.

        Raises:
            NonFiniteLossError: If the potential is NaN or infinite in a chain.
        """
        parameter = self.guide.flat_loc
        parameter.grad = None
        try:
            self.elbo.backward(self.model, self.guide, args)
        except ValueError:  # Pyro's validation may refuse NaN before the objective is found to be non-finite
            parameter.grad = None
            with pyro.validation_enabled(False):
                self.elbo.backward(self.model, self.guide, args)
            raise
        gradient, parameter.grad = parameter.grad, None
        assert gradient is not None
        return gradient.view(self.flat.shape)

    def _meet(self, args: tuple[Any, ...]) -> None:
        """Shows the guide the model's priors, so that the first step of a resumed run takes the path of any other."""
        with random_state.kept(self.flat.device), torch.no_grad(), pyro.validation_enabled(False):
            try:
                self.elbo.loss(self.model, self.guide, *args)
            except NonFiniteLossError:
                return
