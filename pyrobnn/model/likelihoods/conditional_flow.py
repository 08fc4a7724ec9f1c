r"""Normalizing flows whose map depends on the input: densities of any form, jointly for several targets.

.. math::  \log p(y \mid x) = \log N(T_x(y); 0, I) + \log |\det T_x'(y)|,

where :math:`T_x` is made of monotonic splines (Durkan et al. 2019) or affine functions, each of one target given
earlier ones (Papamakarios et al. 2017) or given one half of them (Dinh et al. 2017). The maps are those of zuko.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pyrobnn.core.arguments import check_int, check_non_negative, check_positive_int
from pyrobnn.core.explanations import explained
from pyrobnn.core.extras import import_zuko
from pyrobnn.distributions.flow import FlowDistribution
from pyrobnn.model.likelihoods.base import Likelihood
from pyrobnn.model.likelihoods.flow_maps import MIN_SLOPE, Conditioned, LearnedFlow, Splines
from pyrobnn.model.likelihoods.paired import warn_of_floor
from pyrobnn.model.likelihoods.reductions import MomentReduction, Reduction

__all__ = ["ConditionalFlow"]


@explained
class ConditionalFlow(Likelihood):
    r"""A density of any form, given by a conditional normalizing flow. Needs the extra ``flows``.

    There are two ways in which the flow depends on the network:

    * ``context=None``, for one target: the outputs ``[B, 2 + T (3 bins - 1)]`` *are* the flow's parameters: location,
      raw scale, and the widths, heights and slopes of T splines on :math:`[-5, 5]`. Nothing else is learned, so that
      a posterior of the network's weights is one of the density, and every guide and sampler applies. Outputs of zero
      mean a normal distribution. As with :class:`~pyrobnn.likelihoods.HeteroscedasticNormal`, scale the targets.
    * ``context=C``: the outputs ``[B, C]`` are features that networks of the flow read, beside other targets. The
      weights of these networks, and one location and scale for each target, are learned as a point, like the scale of
      ``Normal()``: they have no posterior, and samplers and ``Laplace`` hold them fixed, so train them first. The
      density starts as a normal one of the targets' mean and standard deviation, whatever the outputs are.

    A single target has a cdf, so that quantiles, intervals and entropies are computed; of several targets, intervals
    are of draws. Mean and variance are sums over fixed nodes, the same for all draws
    (:class:`~pyrobnn.distributions.flow.FlowDistribution`).

    Args:
        num_targets: Number D of targets of a row.
        context: Number C of features, or None.
        transform: ``"spline"``, or ``"affine"``, which needs ``context``.
        coupling: Transform one half of the targets given the other, in turn, in place of each given those before it:
            draws take one pass in place of D. Needs at least two targets.
        num_transforms: Number T of maps one after another; None for 1 without ``context``, else 3.
        bins: Number of pieces of a spline.
        hidden: Widths of the hidden layers of the flow's networks.
        floor: Smallest scale, which keeps the likelihood bounded (without ``context``).
        num_nodes: Number of nodes for mean and variance; None for 128 of one target, 64 of several, whose cost and
            error (a few percent of the variance) are larger. Densities, quantiles and draws do not depend on it.
        missing: Whether a target may be NaN (not observed), as in :class:`~pyrobnn.likelihoods.Likelihood`; of one
            target only.

    Attributes:
        num_outputs: Number of outputs that the network must have.

    Raises:
        ImportError: If zuko is not installed.
        TypeError: If ``coupling`` or ``missing`` is no bool.
        ValueError: If another argument is wrong, several targets have no ``context`` or may be missing, or one target
            is to be coupled or to be affine in no context.
    """

    learned = "flow"

    def __init__(
        self,
        num_targets: int = 1,
        context: int | None = None,
        *,
        transform: Literal["spline", "affine"] = "spline",
        coupling: bool = False,
        num_transforms: int | None = None,
        bins: int = 8,
        hidden: Sequence[int] = (64, 64),
        floor: float = 1e-3,
        num_nodes: int | None = None,
        missing: bool = False,
    ) -> None:
        super().__init__(missing=missing)
        check_positive_int("num_targets", num_targets)
        if transform not in ("spline", "affine"):
            raise ValueError(f"transform: expected 'spline' or 'affine', got {transform!r}.")
        if not isinstance(coupling, bool):
            raise TypeError(f"coupling: expected True or False, got {coupling!r}.")
        check_int("bins", bins, 2)
        check_non_negative("floor", floor, "scale")
        num_nodes = (128 if num_targets == 1 else 64) if num_nodes is None else num_nodes
        check_int("num_nodes", num_nodes, 8)
        if not isinstance(hidden, list | tuple) or any(type(width) is not int or width < 1 for width in hidden):
            raise ValueError(f"hidden: expected the widths of hidden layers, such as (64, 64), got {hidden!r}.")
        if coupling and num_targets == 1:
            raise ValueError(
                "coupling: it transforms some targets given the others, so that it needs at least two; a flow of one "
                "target needs no coupling."
            )
        if missing and num_targets > 1:
            raise ValueError(
                "missing: a flow cannot integrate out one of several targets; use MixtureDensity, which can, or leave "
                "these rows out."
            )
        if num_transforms is None:
            num_transforms = 1 if context is None else 3
        check_positive_int("num_transforms", num_transforms)
        self.num_targets, self.context, self.transform, self.coupling = num_targets, context, transform, coupling
        self.num_transforms, self.bins, self.hidden = num_transforms, bins, tuple(hidden)
        self.floor, self.num_nodes = float(floor), num_nodes
        self._has_warned = False
        if context is None:
            if num_targets > 1:
                raise ValueError(
                    "context: state how many features a flow of several targets is given, such as context=32, and give "
                    "the network as many outputs."
                )
            if transform == "affine":
                raise ValueError(
                    "transform: an affine map of one target, given by the outputs, is HeteroscedasticNormal; use "
                    "'spline', or that."
                )
            import_zuko("ConditionalFlow")
            self.num_outputs = 2 + num_transforms * (3 * bins - 1)
        else:
            check_positive_int("context", context)
            self.num_outputs = context
            self.add_plain("flow", LearnedFlow(self._made(import_zuko("ConditionalFlow")), num_targets))

    def _made(self, zuko: Any) -> nn.Module:
        options: dict[str, Any] = {"transforms": self.num_transforms, "hidden_features": self.hidden}
        if self.transform == "spline":
            univariate = partial(zuko.transforms.MonotonicRQSTransform, slope=MIN_SLOPE)
            options |= {"univariate": univariate, "shapes": [(self.bins,), (self.bins,), (self.bins - 1,)]}
        kind = zuko.flows.NICE if self.coupling else zuko.flows.MAF
        made: nn.Module = kind(self.num_targets, self.context, **options).transform
        return made

    def parameters_of(self, outputs: Tensor) -> dict[str, Tensor]:
        """``loc`` and ``scale [B, D]``, and ``spline`` or ``context``."""
        if self.context is None:
            loc, raw, spline = outputs[..., :1], outputs[..., 1:2], outputs[..., 2:]
            return {"loc": loc, "scale": F.softplus(raw) + self.floor, "spline": spline}
        flow: Any = self._plain["flow"]
        shape = (*outputs.shape[:-1], self.num_targets)
        dtype = torch.promote_types(outputs.dtype, flow.loc.dtype)
        loc, scale = (part.to(dtype).expand(shape) for part in (flow.loc, flow.log_scale.exp()))
        return {"loc": loc, "scale": scale, "context": outputs}

    def distribution(self, parameters: Mapping[str, Tensor]) -> FlowDistribution:
        """The flow."""
        loc, scale = parameters["loc"], parameters["scale"]
        made: Any = Splines(parameters["spline"], self.num_transforms, self.bins) if self.context is None else None
        if made is None:
            flow: Any = self._plain["flow"]
            made = Conditioned(flow.maps, parameters["context"].to(loc.dtype), self.num_targets)
        return FlowDistribution(made, loc, scale, self.num_nodes)

    def rescaled(self, parameters: Mapping[str, Tensor], loc: Tensor, scale: Tensor) -> dict[str, Tensor]:
        """The parameters of ``loc + scale · y``."""
        moved = {"loc": loc + scale * parameters["loc"], "scale": scale * parameters["scale"]}
        return {**parameters, **moved}

    def reduction(self, num_samples: int, *, keep: bool, max_bytes: int) -> Reduction:
        """Mean, variance and parameters of each draw; with the weights of the flow as they are now."""
        likelihood = self
        if (
            self.context is not None
        ):  # of which parameters hold only the context: a prediction outlives further training
            likelihood = copy.deepcopy(self).requires_grad_(False)
        return MomentReduction(likelihood, num_samples, keep=keep, max_bytes=max_bytes)

    @torch.no_grad()
    def initialize(self, targets: Tensor) -> None:
        """Starts location and scale of a flow with ``context`` at the targets' mean and standard deviation."""
        if not self.untrained or targets.dim() < 2 or targets.shape[-1] != self.num_targets:
            return
        rows = targets.detach().double().reshape(-1, self.num_targets)
        rows = rows[rows.isfinite().all(-1)]
        if len(rows) > 1:
            flow: Any = self._plain["flow"]
            spread = rows.std(0)
            flow.loc.copy_(rows.mean(0))
            flow.log_scale.copy_(torch.where(spread > 0, spread, 1.0).log())

    @property
    def untrained(self) -> bool:
        """Whether the flow's own weights are still those that make the density a normal one for all inputs."""
        flow: Any = self._plain.get("flow")
        return flow is not None and bool(flow.is_normal())

    def notice(self, parameters: Mapping[str, Tensor]) -> None:
        """Warns once if more than a hundredth of the scales is at the floor."""
        if not self._has_warned and self.floor and self.context is None:
            self._has_warned = warn_of_floor(self, parameters["scale"], self.floor)

    def target_shape(self, outputs: Tensor) -> torch.Size:
        """The outputs' shape with D in place of the last dimension."""
        if outputs.dim() < 2 or outputs.shape[-1] != self.num_outputs:
            raise ValueError(
                f"net: this ConditionalFlow expects outputs [B, {self.num_outputs}] (its num_outputs), got shape "
                f"{tuple(outputs.shape)}; change the last layer, or the flow's options."
            )
        return torch.Size((*outputs.shape[:-1], self.num_targets))

    def config(self) -> dict[str, Any]:
        """Constructor arguments."""
        names = ("num_targets", "context", "transform", "coupling", "num_transforms", "bins", "floor", "num_nodes")
        return {**{name: getattr(self, name) for name in names}, "hidden": list(self.hidden), **super().config()}
