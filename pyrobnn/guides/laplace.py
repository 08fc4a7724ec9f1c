r"""Laplace approximation: a Gaussian at the mode, with the inverse curvature as its covariance.

.. math::  q(w) = N\big(\hat w, (H + P)^{-1}\big), \qquad H = \sum_{n=1}^N J_n^\top \Lambda_n J_n,

with P the prior's precision and H the generalized Gauss–Newton matrix of the log likelihood, summed over *all* data. It
stands for the Hessian, which is indefinite for a network; for networks linear in their weights the two are equal. The
Laplace evidence compares models and tunes the prior,

.. math::  \log p(D) \approx \log p(D \mid \hat w) + \log p(\hat w) + \tfrac d2 \log 2\pi - \tfrac12 \log\det(H + P).

MacKay (1992); Ritter, Botev & Barber (2018); Immer et al. (2021); Daxberger et al., *Laplace Redux* (2021). Draws of a
Gauss–Newton posterior over hidden layers underfit; the matrix belongs to the predictive of the *linearized* network,
which :func:`pyrobnn.predict` takes for them. For the last layer the two are one.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from pyrobnn.core.batches import Batch, Reader
from pyrobnn.core.explanations import explained
from pyrobnn.core.gradient_modes import gradients_enabled, refuse_inference_tensors
from pyrobnn.core.processes import refuse_process_group
from pyrobnn.core.progress import progress_bar
from pyrobnn.core.training_rows import remember, share_rows
from pyrobnn.curvature import (
    Structure,
    check_structure,
    fill_by_hessian,
    fit_curvature,
    lay_out,
    tune_multipliers,
    tune_on_held_out,
)
from pyrobnn.guides.base import check_guide
from pyrobnn.guides.components.block_posterior import BlockPosterior
from pyrobnn.model.agreement import check_given
from pyrobnn.model.bayesianize import evaluating, frozen_buffers
from pyrobnn.model.initialization import Init, initial_values
from pyrobnn.model.likelihoods.learned import refuse_untrained
from pyrobnn.model.num_data import check_stated_rows, check_whole_pass
from pyrobnn.model.supervised import SupervisedModel

__all__ = ["Laplace"]


@explained
class Laplace(BlockPosterior):
    """A point while it is trained, the Gaussian around it after :meth:`fit`.

    Training is that of :class:`~pyrobnn.guides.MAP`; a point that is fitted already is taken as the start::

        guide = Laplace(model, init=map_guide).fit(model, loader)

    :meth:`sample`, and so everything that predicts, needs :meth:`fit`, and keeps the mode of that moment, whatever is
    trained later. A call of the guide, as Pyro makes it, is the point in training mode (the default of modules), the
    Gaussian after ``guide.eval()``. Sites that the structure does not cover are points: those of other layers, of the
    likelihood, the scales of hierarchical priors. The Gaussian is that of the covered weights given these.

    Args:
        model: The Pyro model.
        init: Where to start, as for :class:`~pyrobnn.guides.MeanField`: a fitted :class:`~pyrobnn.guides.MAP`, say.
        structure: ``"last_layer"``, a full matrix over one layer (its Kronecker product beyond 10,000 weights, the
            diagonal beyond 2,000 outputs); ``"full"``, over all weights; ``"diagonal"``; ``"kronecker"``, one
            Kronecker product for each linear or 2-d convolutional layer.
        last_layer: Name of that layer in the network. If None, :meth:`fit` finds it by running the network: the layer
            with a weight matrix that ran last and made the outputs. A name, or True to find it, restricts the
            diagonal and Kronecker structures to one layer, too.
        example: Arguments of one run, for models whose sites are not known without data.
        sites: Names of the sites that the guide is for; all of them if None.

    Attributes:
        last_layer: The layer that :meth:`fit` found, or that was named; else None.
        mean: The mode at the time of :meth:`fit`, ``[d]``.
        log_likelihood: Log likelihood of all data there, in nats.
        fitted: Whether there is a Gaussian.

    Raises:
        ValueError: If the structure covers nothing or needs a matrix that is too large.
    """

    def __init__(
        self,
        model: Callable[..., Any],
        init: Init = None,
        *,
        structure: Structure = "last_layer",
        last_layer: str | bool | None = None,
        example: tuple[Any, ...] | None = None,
        sites: Collection[str] | None = None,
    ) -> None:
        super().__init__(model, example=example, sites=sites)
        self.loc = nn.Parameter(self.layout.join(initial_values(model, self.layout, init)))
        check_structure(structure, last_layer)
        self.structure: Structure = structure
        self.last_layer = last_layer if isinstance(last_layer, str) else None
        finds = self.last_layer is None and (structure == "last_layer" or last_layer is True)
        # A name, or whether to find it in each fit.
        self._stated: str | bool = finds if self.last_layer is None else self.last_layer
        like = self.flat_loc.detach()
        self._set_groups([] if finds else lay_out(model, self.layout, structure, self.last_layer, like))
        self.register_buffer("mean", torch.zeros_like(like))
        self.register_buffer("log_likelihood", like.new_zeros(()))
        for name in ("fitted", "has_normal_priors", "is_linear"):
            self.register_buffer(name, torch.zeros((), dtype=torch.bool, device=like.device))

    def config(self) -> dict[str, Any]:
        """Constructor arguments, with the last layer that was found."""
        return {
            "structure": self.structure,
            "last_layer": self._stated if self.last_layer is None else self.last_layer,
        }

    def extra_repr(self) -> str:
        """Sizes, the structure, and the layer it is about."""
        layer = "" if self.last_layer is None else f", last_layer={self.last_layer!r}"
        return f"{super().extra_repr()}, structure={self.structure!r}{layer}"

    # ------------------------------------------------------------------------------------- curvature

    @explained
    def fit(
        self,
        model: nn.Module,
        loader: Iterable[Any],
        *,
        prior_precision: Literal["model", "evidence", "held_out"] = "model",
        held_out: Iterable[Any] | None = None,
        batch: Reader | None = None,
        given: Mapping[str, Tensor] | None = None,
        max_bytes: int = 256 * 2**20,
        progress: bool = False,
    ) -> Laplace:
        """Computes the curvature at the mode, in one pass over all data.

        Args:
            model: The model. For one that is no :class:`~pyrobnn.SupervisedModel`, curvature is the Hessian of its log
                joint density over all real-valued sites (at most 2,000 numbers), and the structure ``"full"`` or
                ``"diagonal"``.
            loader: Batches ``(x, y)`` of the whole data set, or ``(x, y, weight)``: a row of weight 2 counts as two.
            prior_precision: That of the model's prior, or a multiple of it: of ``"evidence"`` by
                :meth:`optimize_prior_precision`, of ``"held_out"`` the one (1e-6 to 1e6) under which the linearized
                network predicts the data of ``held_out`` best. A prior that was good to train under is often far too
                wide here.
            held_out: Batches for ``prior_precision="held_out"`` that are not in ``loader``, which is checked as far as
                it can be told.
            batch: For loaders that yield something else, as for :func:`pyrobnn.fit`.
            given: Values of sites that this guide does not have (``sites``).
            max_bytes: Budget for Jacobians. Where that of one datum does not fit, or has more than 1,000 outputs,
                curvature is estimated from 20 targets drawn for each datum. Last layers need no Jacobian.
            progress: Show a progress bar.

        Returns:
            The guide itself.

        Raises:
            TypeError: If the model is of a kind that the structure cannot take, or a batch of no known form.
            ValueError: If the loader has not each of ``num_data`` rows once, a target is out of range, a site lacks a
                value, a Hessian is not positive definite, a prior is not log-concave at the mode (or not Normal, if it
                is to be tuned), the likelihood learns a scale that was not trained, or there is no last layer (tied,
                frozen, several).
            RuntimeError: In a process group of several processes (:func:`~pyrobnn.independent_processes`).
        """
        refuse_process_group("Laplace.fit")
        if prior_precision not in ("model", "evidence", "held_out"):
            raise ValueError(f"prior_precision: expected 'model', 'evidence' or 'held_out', got {prior_precision!r}.")
        if (prior_precision == "held_out") != (held_out is not None):
            raise ValueError(
                "held_out: it is the data that prior_precision='held_out' is tuned on, so pass both or neither."
            )
        if not isinstance(model, SupervisedModel):
            self._check_structure_for(model)
        if held_out is not None and share_rows(loader, held_out):
            raise ValueError("held_out: it shares rows with loader; pass data that the curvature is not taken on.")
        check_guide(model, self, argument="model", partial=True)
        remember(self, loader)
        if not isinstance(model, SupervisedModel):
            if prior_precision != "model":
                raise ValueError("prior_precision: it is tuned for a SupervisedModel only; leave 'model' for your own.")
            return self._fit_by_hessian(model, loader, batch, {} if given is None else given, progress)
        check_given(model, {} if given is None else given)
        refuse_untrained(model, "Laplace.fit")
        refuse_inference_tensors(model=model, guide=self)
        check_stated_rows(model.num_data, loader, batch)
        check_whole_pass(loader, "curvature")
        with gradients_enabled(), torch.no_grad():  # ordinary tensors; gradients where they are needed
            self.fitted.fill_(False)  # until all blocks are filled
            values = self.layout.constrain(self.layout.split(self.flat_loc.detach().clone())) | dict(given or {})
            with evaluating(model), frozen_buffers(model):
                found = fit_curvature(
                    model,
                    values,
                    self.layout,
                    _read(loader, batch, self.mean.device, progress),
                    structure=self.structure,
                    last_layer=self._stated,
                    like=self.flat_loc.detach(),
                    max_bytes=max_bytes,
                )
            self._set_groups(found.groups)
            self.last_layer = None if found.last_layer is None else found.last_layer.name
            self.is_linear.fill_(found.last_layer is not None and found.last_layer.is_linear)
            self.mean.copy_(self.flat_loc)
            self.log_likelihood.fill_(found.log_likelihood)
            self.has_normal_priors.fill_(found.is_normal)
            self.fitted.fill_(True)
        if prior_precision == "evidence":
            self.optimize_prior_precision()
        elif held_out is not None:
            self._check_normal_priors()
            with gradients_enabled(), torch.no_grad(), evaluating(model), frozen_buffers(model):
                held = _read(held_out, batch, self.mean.device, progress)
                covered = {name: self.layout[name] for name in self.covered}
                tune_on_held_out(model, values, covered, self.joint(), held, max_bytes=max_bytes)
        return self

    def _check_structure_for(self, model: Any) -> None:
        """Refuses structures that a Pyro model of one's own has no curvature for."""
        if self.structure not in ("full", "diagonal") or self._stated is not False:
            raise TypeError(
                f"model: structure={self.structure!r} needs a SupervisedModel, whose network and likelihood are known, "
                f"got {type(model).__name__}; make one of them, or pass structure='full' or 'diagonal', which take the "
                "Hessian of the model's log density."
            )
        if not isinstance(model, nn.Module):
            raise TypeError(f"model: expected a module, such as a PyroModule, got {type(model).__name__}.")

    def _fit_by_hessian(
        self, model: Any, loader: Iterable[Any], reader: Reader | None, given: Mapping[str, Tensor], progress: bool
    ) -> Laplace:
        """Takes the curvature of a Pyro model of one's own, whose network and likelihood are not known apart."""
        refuse_inference_tensors(model=model, guide=self)
        check_whole_pass(loader, "curvature")
        with gradients_enabled(), torch.no_grad(), evaluating(model), frozen_buffers(model):
            self.fitted.fill_(False)
            values = self.layout.constrain(self.layout.split(self.flat_loc.detach().clone())) | dict(given)
            groups = lay_out(model, self.layout, self.structure, None, self.flat_loc.detach())
            log_likelihood = fill_by_hessian(model, values, groups, _read(loader, reader, self.mean.device, progress))
            self._set_groups(groups)
            self.is_linear.fill_(True)  # draws of a Hessian's Gaussian are what the posterior is near the mode
            self.mean.copy_(self.flat_loc)
            self.log_likelihood.fill_(log_likelihood)
            self.has_normal_priors.fill_(False)
            self.fitted.fill_(True)
        return self

    def _check_normal_priors(self) -> None:
        if not self.has_normal_priors:
            raise ValueError(
                "prior_precision: some covered sites have priors that are not Normal, so there is no precision to "
                "multiply; give them Normal priors, or keep the model's."
            )

    def log_evidence(self) -> float:
        """The Laplace log evidence in nats, given the sites that are points.

        Raises:
            RuntimeError: Before :meth:`fit`.
        """
        self.joint()  # refuses before the fit
        return float(self.log_likelihood) + sum(float(block.log_evidence()) for block in self.flat_blocks)

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
        self._check_normal_priors()
        if per_layer and self.structure == "full":
            raise ValueError("per_layer: structure='full' correlates the layers; leave it False.")
        found = tune_multipliers(self.flat_blocks, separately=per_layer)
        return dict(zip(self.group_names, found, strict=True)) if per_layer else found[0]


def _read(loader: Iterable[Any], reader: Reader | None, device: torch.device, progress: bool) -> Iterator[Batch]:
    for raw in progress_bar(loader, shown=progress, unit="batch"):
        yield Batch.read(raw, device, reader)
