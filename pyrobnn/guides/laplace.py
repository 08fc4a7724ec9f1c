r"""Laplace approximation: a Gaussian at the mode, with the inverse curvature as its covariance.

.. math::  q(w) = N\big(\hat w, (H + P)^{-1}\big), \qquad H = \sum_{n=1}^N J_n^\top \Lambda_n J_n,

with P the prior's precision and H the generalized Gauss–Newton matrix of the log likelihood, summed over *all* data. It
stands for the Hessian, which is indefinite for a network; for networks linear in their weights the two are equal. The
Laplace evidence compares models and tunes the prior,

.. math::  \log p(D) \approx \log p(D \mid \hat w) + \log p(\hat w) + \tfrac d2 \log 2\pi - \tfrac12 \log\det(H + P).

MacKay (1992); Ritter, Botev & Barber (2018); Immer et al. (2021); Daxberger et al., *Laplace Redux* (2021). Draws of a
Gauss–Newton posterior over hidden layers underfit; the matrix belongs to the predictive of the *linearized* network,
which :func:`pyrobnn.predict` takes for them. For the last layer the two are one. The package laplace-torch does the
same for plain networks; here it is a Pyro guide like any other.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import replace
from typing import Any, Literal

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyrobnn.core.gradient_modes import gradients_enabled, refuse_inference_tensors
from pyrobnn.curvature import Block, BlockGaussian, Group, Structure, fill, lay_out, tune_multipliers
from pyrobnn.guides.base import check_guide, sample_site
from pyrobnn.guides.components.low_rank import joint_divergence
from pyrobnn.guides.components.point import TrainedAsPoint, values_of_point
from pyrobnn.model.agreement import check_given
from pyrobnn.model.bayesianize import evaluating, frozen_buffers
from pyrobnn.model.divergence import Divergence, PriorTerm
from pyrobnn.model.draws import Draws
from pyrobnn.model.facts import Facts
from pyrobnn.model.initialization import Init, initial_values
from pyrobnn.model.supervised import SupervisedModel

__all__ = ["Laplace"]


class Laplace(TrainedAsPoint):
    """A point while it is trained, the Gaussian around it after :meth:`fit`.

    Training is that of :class:`~pyrobnn.guides.MAP`; a point that is fitted already is taken as the start::

        guide = Laplace(model, init=map_guide).fit(model, loader)

    :meth:`sample`, and so everything that predicts, needs :meth:`fit`, and keeps the mode of that moment, whatever is
    trained later. A call of the guide, as Pyro makes it, is the point in training mode (the default of modules), the
    Gaussian after ``guide.eval()``. Sites that the structure does not cover are points: those of other layers, of the
    likelihood, the scales of hierarchical priors. The Gaussian is that of the covered weights given these.

    Args:
        model: The Pyro model.
        init: Where to start: a fitted :class:`~pyrobnn.guides.MAP`, or as for :class:`~pyrobnn.guides.MeanField`.
        structure: ``"last_layer"``, a full matrix over one layer; ``"full"``, over all weights; ``"diagonal"``;
            ``"kronecker"``, one Kronecker product for each linear or 2-d convolutional layer.
        last_layer: That layer's name in the network, if it is not the last linear one.
        example: Arguments of one run, for models whose sites are not known without data.
        sites: Names of the sites that the guide is for; all of them if None.

    Attributes:
        mean: The mode at the time of :meth:`fit`, ``[d]``.
        log_likelihood: Log likelihood of all data there, in nats.
        fitted: Whether there is a Gaussian.

    Raises:
        TypeError: If ``init`` is a guide that is no point.
        ValueError: If the structure covers nothing or needs a matrix that is too large.
    """

    def __init__(
        self,
        model: Callable[..., Any],
        init: Init = None,
        *,
        structure: Structure = "last_layer",
        last_layer: str | None = None,
        example: tuple[Any, ...] | None = None,
        sites: Collection[str] | None = None,
    ) -> None:
        super().__init__(model, example=example, sites=sites)
        self.loc = nn.Parameter(self.layout.join(initial_values(model, self.layout, values_of_point(init))))
        self.structure, self.last_layer = structure, last_layer
        like = self.flat_loc.detach()
        groups = lay_out(model, self.layout, structure, last_layer, like)
        self.group_names = [group.name for group in groups]
        self._block_of = {site.name: index for index, group in enumerate(groups) for site in group.sites}
        self.add_module("blocks", nn.ModuleList(group.block for group in groups))
        self.register_buffer("mean", torch.zeros_like(like))
        self.register_buffer("log_likelihood", like.new_zeros(()))
        for name in ("fitted", "has_normal_priors"):
            self.register_buffer(name, torch.zeros((), dtype=torch.bool, device=like.device))

    mean: Tensor
    log_likelihood: Tensor
    fitted: Tensor
    has_normal_priors: Tensor

    @property
    def flat_blocks(self) -> list[Block]:
        """The Gaussians over parts of the flat vector, read past Pyro's attribute hooks."""
        return list(self._modules["blocks"])  # type: ignore[call-overload]

    @property
    def covered(self) -> list[str]:
        """Sites with a Gaussian, block by block; the others are points."""
        return list(self._block_of)

    def config(self) -> dict[str, Any]:
        """Constructor arguments."""
        return {"structure": self.structure, "last_layer": self.last_layer}

    # ------------------------------------------------------------------------------------- curvature

    def fit(
        self,
        model: nn.Module,
        loader: Iterable[Any],
        *,
        given: Mapping[str, Tensor] | None = None,
        max_bytes: int = 256 * 2**20,
        progress: bool = False,
    ) -> Laplace:
        """Computes the curvature at the mode, in one pass over all data, with the prior of the model.

        Args:
            model: The model, a :class:`~pyrobnn.SupervisedModel`.
            loader: Batches ``(x, y)`` of the whole data set, of any size.
            given: Values of sites that this guide does not have (``sites``).
            max_bytes: Budget for Jacobians.
            progress: Show a progress bar.

        Returns:
            The guide itself.

        Raises:
            TypeError: If the model is another or a batch is not a pair.
            ValueError: If the loader has not ``num_data`` rows, a site lacks a value, or a prior is not log-concave at
                the mode.
        """
        if not isinstance(model, SupervisedModel):
            raise TypeError(f"model: curvature needs a SupervisedModel, got {type(model).__name__}.")
        check_guide(model, self, argument="model", partial=True)
        check_given(model, given or {})
        refuse_inference_tensors(model=model, guide=self)
        with gradients_enabled(), torch.no_grad():  # ordinary tensors; gradients where they are needed
            self.fitted.fill_(False)  # until all blocks are filled
            values = self.layout.constrain(self.layout.split(self.flat_loc.detach().clone())) | dict(given or {})
            with evaluating(model), frozen_buffers(model):
                log_likelihood, is_normal = fill(
                    model, values, self._groups(model), loader, max_bytes=max_bytes, progress=progress
                )
            self.mean.copy_(self.flat_loc)
            self.log_likelihood.fill_(log_likelihood)
            self.has_normal_priors.fill_(is_normal)
            self.fitted.fill_(True)
        return self

    def _groups(self, model: SupervisedModel) -> list[Group]:
        """The layout again, for this model's own layers, with the guide's blocks."""
        groups = lay_out(model, self.layout, self.structure, self.last_layer, self.flat_loc.detach())
        return [replace(group, block=block) for group, block in zip(groups, self.flat_blocks, strict=True)]

    def log_evidence(self) -> float:
        """The Laplace log evidence in nats, given the sites that are points.

        Raises:
            RuntimeError: Before :meth:`fit`.
        """
        self.joint()  # refuses before the fit
        gains = [block.log_evidence_gain(block.multiplier.double()) for block in self.flat_blocks]
        return float(self.log_likelihood) + sum(float(gain) for gain in gains)

    @torch.no_grad()
    def optimize_prior_precision(self, *, per_layer: bool = False) -> float | dict[str, float]:
        """Multiplies the prior precision by what maximizes :meth:`log_evidence`; the mode stays where it is.

        Args:
            per_layer: One multiplier for each layer (diagonal and Kronecker structures) instead of one for all.

        Returns:
            The multiplier (between 1e-8 and 1e8), or one by layer; predictions use it from now on.

        Raises:
            RuntimeError: Before :meth:`fit`.
            ValueError: If a prior is not Normal, so that it has no precision to multiply, or layers are correlated.
        """
        self.joint()  # refuses before the fit
        if not self.has_normal_priors:
            raise ValueError("structure: some covered sites have priors that are not Normal; they cannot be tuned.")
        if per_layer and self.structure == "full":
            raise ValueError("per_layer: structure='full' correlates the layers; leave it False.")
        found = tune_multipliers(self.flat_blocks, separately=per_layer)
        return dict(zip(self.group_names, found, strict=True)) if per_layer else found[0]

    # -------------------------------------------------------------------------------------- distribution

    def joint(self) -> BlockGaussian:
        """The distribution of the flat vector; refused before :meth:`fit`."""
        if not self.fitted:
            raise RuntimeError("Laplace: it has no curvature yet; call laplace.fit(model, loader) first.")
        return BlockGaussian(self.mean, self.flat_blocks)

    @property
    def facts(self) -> Facts:
        """A point before :meth:`fit`; then independent groups of Gaussians, and points where there is no curvature."""
        predictor: Literal["weights", "linearized"] = "weights" if self.structure == "last_layer" else "linearized"
        if not self.fitted:
            return replace(super().facts, is_ready=False, predictor=predictor)
        groups: dict[int, set[str]] = {}
        for name, index in self._block_of.items():
            groups.setdefault(index, set()).add(name)
        points = [frozenset({name}) for name in self.layout if name not in self._block_of]
        return Facts(
            sites=frozenset(self.layout),
            density=frozenset(self._block_of),
            independent=(*map(frozenset, groups.values()), *points),
            predictor=predictor,  # draws over hidden layers underfit; for the last layer the two are one
        )

    def mode(self) -> dict[str, Tensor]:
        """The Gaussian's mean: the values of all sites when the curvature was computed."""
        return self.layout.constrain(self.layout.split(self.joint().mean))

    def rsample(self, noise: Tensor | None = None) -> Draws:
        """One draw of the Gaussian, whose parameters are not trained; refused before :meth:`fit`."""
        return self.sample(1).at(0)

    @torch.no_grad()
    def sample(self, num_samples: int) -> Draws:
        """Draws ``{site: [num_samples, *site shape]}`` of the Gaussian; refused before :meth:`fit`."""
        return Draws(self.layout.constrain(self.layout.split(self.joint().rsample((num_samples,)))))

    def marginal(self, name: str) -> dist.Distribution:
        """The site's Gaussian by element (correlations are left out); a point where it is one, and before the fit."""
        if not self.fitted:
            return self.point_marginal(name)
        event_dim = self.layout[name].event_dim
        if name not in self._block_of:
            return dist.Delta(self.mode()[name], event_dim=event_dim)
        gaussian = BlockGaussian(self.mean, [self.flat_blocks[self._block_of[name]]])
        scale = self.layout.split(gaussian.variance)[name].sqrt()
        return dist.Normal(self.mode()[name], scale).to_event(event_dim)

    def log_prob(self, draws: Mapping[str, Tensor]) -> Tensor:
        """Log density ``[K]`` of draws ``{site: [K, *site shape]}`` of whole groups of sites that have one.

        Raises:
            NotImplementedError: If some sites are points, or sites that they are correlated with are missing.
            RuntimeError: Before :meth:`fit`.
        """
        gaussian = self.joint()
        if not self.facts.can_marginalize(list(draws)):
            named = next((name for name in draws if name not in self._block_of), next(iter(draws)))
            reason = "correlated with others that are missing" if named in self._block_of else "a point mass"
            raise NotImplementedError(f"Laplace: the site {named!r} is {reason}, so there is no joint density.")
        count = len(next(iter(draws.values())))
        flat = gaussian.mean.repeat(count, 1)
        for name, value in draws.items():
            flat[:, self.layout[name].window] = value.flatten(1)
        blocks = [self.flat_blocks[index] for index in sorted({self._block_of[name] for name in draws})]
        return BlockGaussian(gaussian.mean, blocks).log_prob(flat)

    def divergence(self, draws: Draws, priors: Mapping[str, PriorTerm]) -> Divergence:
        """The KL of the Gaussian, plus ``-log p`` of sites that are points; before :meth:`fit` of all of them."""
        if not self.fitted:
            return self.point_divergence(draws, priors)
        gaussian, covered = self.joint(), self.layout.select(self.covered)
        means, variances = (self.layout.split(flat) for flat in (gaussian.mean, gaussian.variance))
        entropy = torch.stack([block.entropy() for block in self.flat_blocks]).sum()
        found = joint_divergence(
            covered,
            lambda name: (means[name], variances[name]),
            entropy,
            draws,
            {n: t for n, t in priors.items() if n in covered},
        )
        points = {name: term for name, term in priors.items() if name not in covered}
        return found + self.point_divergence(draws, points) if points else found

    def output_covariance(self, jacobians: Tensor) -> Tensor:
        """``J Σ Jᵀ [..., O, O]`` of Jacobians ``[..., O, n]`` by the sites :attr:`covered`, in their order."""
        windows = [self.layout[name].window for name in self.covered]
        columns = torch.cat([torch.arange(window.start, window.stop) for window in windows])
        return self.joint().image_covariance(jacobians, columns.to(jacobians.device))

    def forward(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """The guide as Pyro calls it: the point in training mode, else a joint draw through an auxiliary site."""
        self.announce_parameters()
        if self.training:
            found = {name: self.point_marginal(name) for name in self.layout}
        else:
            flat = pyro.sample(f"_joint:{self.covered[0]}", self.joint(), infer={"is_auxiliary": True})
            values = self.layout.constrain(self.layout.split(flat))
            found = {n: dist.Delta(values[n], event_dim=site.event_dim) for n, site in self.layout.items()}
        return {name: sample_site(self.layout[name], distribution) for name, distribution in found.items()}
