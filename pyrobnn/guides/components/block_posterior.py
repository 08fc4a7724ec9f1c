"""A point with Gaussians around it: blocks over parts of the flat vector, points elsewhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyrobnn.curvature import Block, BlockGaussian, Group, Structure
from pyrobnn.guides.base import sample_site
from pyrobnn.guides.components.low_rank import independent_normal, joint_divergence
from pyrobnn.guides.components.point import TrainedAsPoint
from pyrobnn.model.divergence import Divergence, PriorTerm
from pyrobnn.model.draws import Draws
from pyrobnn.model.facts import Facts
from pyrobnn.model.linearization import Linearization

__all__ = ["BlockPosterior"]


class BlockPosterior(TrainedAsPoint):
    """The distribution of :class:`~pyrobnn.guides.Laplace`: a point until ``fitted``, then Gaussians around it."""

    structure: Structure
    mean: Tensor
    log_likelihood: Tensor
    fitted: Tensor
    has_normal_priors: Tensor
    is_linear: Tensor

    def _set_groups(self, groups: Sequence[Group]) -> None:
        self.group_names = [group.name for group in groups]
        self._block_of = {site.name: index for index, group in enumerate(groups) for site in group.sites}
        self.add_module("blocks", nn.ModuleList(group.block for group in groups))

    @property
    def flat_blocks(self) -> list[Block]:
        """The Gaussians over parts of the flat vector, read past Pyro's attribute hooks."""
        return list(self._modules["blocks"])  # type: ignore[call-overload]

    @property
    def covered(self) -> list[str]:
        """Sites with a Gaussian, block by block; the others are points."""
        return list(self._block_of)

    # -------------------------------------------------------------------------------------- distribution

    def joint(self) -> BlockGaussian:
        """The distribution of the flat vector; refused before :meth:`fit`."""
        if not self.fitted:
            raise RuntimeError("Laplace: it has no curvature yet; call laplace.fit(model, loader) first.")
        return BlockGaussian(self.mean, self.flat_blocks)

    @property
    def facts(self) -> Facts:
        """A point before :meth:`fit`; then independent groups of Gaussians, and points where there is no curvature."""
        # Draws over hidden layers underfit; where outputs are linear in the weights draws and linearization are one.
        is_linear = bool(self.is_linear) if self.fitted else self.structure == "last_layer"
        predictor: Literal["weights", "linearized"] = "weights" if is_linear else "linearized"
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
            predictor=predictor,
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
        site = self.layout[name]
        if name not in self._block_of:
            return dist.Delta(self.mode()[name], event_dim=site.event_dim)
        gaussian = BlockGaussian(self.mean, [self.flat_blocks[self._block_of[name]]])
        loc, variance = (self.layout.split(flat)[name] for flat in (gaussian.mean, gaussian.variance))
        return independent_normal(site, loc, variance.sqrt())

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
            flat[:, self.layout[name].window] = self.layout[name].unconstrain(value).flatten(1)
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
        return self.joint().image_covariance(jacobians, self._columns(jacobians.device))

    def covariance_times(self, rows: Tensor) -> Tensor:
        """``rows Σ`` of rows ``[..., n]`` by the sites :attr:`covered`, in their order."""
        return self.joint().covariance_times(rows, self._columns(rows.device))

    def _columns(self, device: torch.device) -> Tensor:
        """Where the covered sites' elements are in the flat vector."""
        windows = [self.layout[name].window for name in self.covered]
        return torch.cat([torch.arange(window.start, window.stop) for window in windows]).to(device)

    def linearization(self) -> Linearization:
        """The Gaussian around the mode; refused before the fit."""
        return Linearization(self.mode(), self.covered, self.output_covariance, self.covariance_times)

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
