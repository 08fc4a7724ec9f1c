r"""Influence at a point, from gradients and an inverse curvature that each method supplies.

.. math::  I_{up} = -\nabla L(z_t)^\top H^{-1} \nabla L(z_n)

needs one solution for each *test* datum, however many training rows there are. That is a removal to first order.
Without the row the curvature is smaller, too: with Jacobian J, residual :math:`r = \nabla_f L` and curvature Λ of the
loss in the outputs, the Newton step of the weights is

.. math::  \Delta = (H - J^\top \Lambda J)^{-1} J^\top r = H^{-1} J^\top (I - \Lambda J H^{-1} J^\top)^{-1} r.

In a linear model with Gaussian noise this is exact (Cook & Weisberg 1982), and the first-order form is too small by the
factor ``1 - leverage``, which counts for rows that decide much. Test losses are linearized in Δ, or computed at Δ.
"""

from __future__ import annotations

import warnings
from abc import abstractmethod
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from pyrobnn.core.arguments import check_positive_int
from pyrobnn.core.batches import Batch, Reader
from pyrobnn.core.gradient_modes import gradients_enabled
from pyrobnn.curvature.fisher import information_of
from pyrobnn.curvature.jacobians import Derivatives
from pyrobnn.curvature.layout import lay_out
from pyrobnn.curvature.products import CurvatureProducts, Matrix
from pyrobnn.guides.base import Guide, check_guide
from pyrobnn.influence.base import Influence
from pyrobnn.influence.input_gradients import input_derivatives
from pyrobnn.model.bayesianize import evaluating, frozen_buffers
from pyrobnn.model.draws import Draws, installed_buffers
from pyrobnn.model.layout import Site
from pyrobnn.model.substitution import SubstituteMessenger
from pyrobnn.model.supervised import SupervisedModel

__all__ = ["PointInfluence", "covered_sites", "point_of"]

Form = Literal["first_order", "leverage", "newton"]

_NOT_AT_A_MAXIMUM = 0.1
"""Nats that a Newton step from the point would gain, beyond which a warning says so."""


class PointInfluence(Influence):
    """Base of methods at a mode; a subclass supplies :meth:`solve`.

    Other sites than the covered weights (noise scales, scales of hierarchical priors) stay where they are.

    Args:
        model: The model that was fitted.
        guide: A point: a :class:`~pyrobnn.guides.MAP`, or a fitted :class:`~pyrobnn.guides.Laplace` for its mode. Its
            values now are kept.
        loader: Training data, as for :class:`Influence`.
        sites: The weights that would move, such as those of a last layer; all weights of the network if None.
        matrix: The curvature that is meant.
        batch: How to read batches.
        max_bytes: Budget for gradients of single rows.

    Attributes:
        values: The point.
        sites: The sites that gradients are by.

    Raises:
        TypeError: If the model is no :class:`~pyrobnn.SupervisedModel`.
        ValueError: If the guide is no point, or has no such site; or as :class:`Influence` says.
    """

    def __init__(
        self,
        model: SupervisedModel,
        guide: Guide,
        loader: Iterable[Any],
        *,
        sites: Collection[str] | None = None,
        matrix: Matrix = "hessian",
        batch: Reader | None = None,
        max_bytes: int = 256 * 2**20,
    ) -> None:
        super().__init__(model, loader, batch)
        check_positive_int("max_bytes", max_bytes)
        self.values, self.max_bytes = point_of(model, guide), max_bytes
        self.sites = covered_sites(model, guide, sites)
        self.products = CurvatureProducts(model, self.values, self.sites, self.data.batches, matrix)
        self.derivatives = Derivatives(model, self.values, [site.name for site in self.sites], max_bytes)
        self._is_checked = False

    # ------------------------------------------------------------------------------- what a method supplies

    @abstractmethod
    def solve(self, gradients: Tensor) -> Tensor:
        """``H⁻¹ g`` of gradients ``[R, n]``, in double precision; called while the model is in evaluation mode.

        Raises:
            ValueError: If the curvature has an eigenvalue that is not positive.
        """

    # ---------------------------------------------------------------------------------------- what follows

    def upweighting(self, x: Any, y: Any) -> Tensor:
        """``I_up [T, N]``, as :meth:`Influence.upweighting` says."""
        test = self._test(x, y)
        with self._ready():
            solved = self._solve(self._gradients(test))
            parts = [chunk.double() @ solved.T for own in self.data.batches for chunk in self._chunks(own)]
        return -torch.cat(parts).T.to(self.products.log_joint.point)

    def perturbation(self, x: Any, y: Any, rows: Sequence[int]) -> Tensor:
        """``I_pert [T, R, *input shape]``, as :meth:`Influence.perturbation` says."""
        moved, test = self._differentiable(rows), self._test(x, y)
        with self._ready():
            solved = self._solve(self._gradients(test))
            found = input_derivatives(self.products.log_joint, moved, solved)
        return -found

    def self_influence(self) -> Tensor:
        """``ω gᵀ H⁻¹ g`` of each training row ``[N]``, as :meth:`Influence.self_influence` says."""
        with self._ready():
            chunks = (chunk for own in self.data.batches for chunk in self._chunks(own))
            parts = [(self._solve(chunk) * chunk.double()).sum(1) for chunk in chunks]
        return (torch.cat(parts) * self.data.weight).to(self.products.log_joint.point)

    def removal(
        self, x: Any, y: Any, groups: Sequence[Sequence[int]] | Tensor | None = None, *, form: Form = "first_order"
    ) -> Tensor:
        """The predicted change of each test loss without training rows: ``[T, N]``, or ``[T, G]`` of groups of them.

        Args:
            x: Inputs of T test data.
            y: Their targets.
            groups: Lists of row numbers, or a mask ``[G, N]``; None for each row alone.
            form: ``"first_order"``, ``-ω I_up``; ``"leverage"``, ``∇L(z_t)ᵀ Δ`` with the Newton step of the weights,
                at the curvature without the rows; ``"newton"``, the test losses at the weights after this step. Both
                solve for each output of each row, so they are for methods that solve fast; the last runs the network on
                the test data for each group.

        Raises:
            TypeError: As for :meth:`upweighting`.
            ValueError: As for :meth:`Influence.removal`; if the form is unknown; or if the leverage of a row is not
                below 1, which a curvature that is not that of these data may say.
        """
        if form not in get_args(Form):
            raise ValueError(f"form: expected one of {', '.join(map(repr, get_args(Form)))}, got {form!r}.")
        if form == "first_order":
            return super().removal(x, y, groups)
        alone = [[row] for row in range(self.num_rows)]
        listed = alone if groups is None else self.data.check_groups(groups)
        test = self._test(x, y)
        with self._ready():
            if form == "leverage":
                gradients = self._gradients(test).double()
                columns = [gradients @ self._shift(rows) for rows in listed]
            else:
                before, point = self._losses(test), self.products.log_joint.point.double()
                columns = [self._losses(test, point + self._shift(rows)) - before for rows in listed]
        return torch.stack(columns, 1).to(self.products.log_joint.point)

    @torch.no_grad()
    def _losses(self, batch: Batch, flat: Tensor | None = None) -> Tensor:
        """The loss of each row ``[B]``, at the point or another vector of the covered weights."""
        log_joint = self.products.log_joint
        values = self.values if flat is None else log_joint.moved(flat.to(log_joint.point))
        with SubstituteMessenger(values):
            return -self.model.likelihood(self.model.predictive(batch.inputs)).log_prob(batch.targets).double()

    def _shift(self, rows: list[int]) -> Tensor:
        """The Newton step ``[n]`` of the weights without some rows, at their curvature."""
        batch, weight = self.data.part(rows), self.data.weight[rows]
        outputs = self.derivatives.outputs(batch.inputs)
        jacobian = torch.cat([part for _, part in self.derivatives.jacobians(batch.inputs, outputs)]).flatten(0, 1)
        residual = (self._slopes(outputs, batch).double() * weight.unsqueeze(1)).flatten()
        with SubstituteMessenger(self.values):
            information = information_of(self.model.likelihood, outputs).weighted(weight, torch.float64)
        size = outputs[0].numel()
        bend = torch.zeros(len(rows), size, size, dtype=torch.float64, device=outputs.device)
        for index, block in zip(information.index, information.matrices().unbind(1), strict=True):
            bend[:, index.unsqueeze(1), index] = block
        solved = self._solve(jacobian)
        hat = torch.block_diag(*bend) @ (jacobian.double() @ solved.T)  # Λ J H⁻¹ Jᵀ, of real eigenvalues in [0, 1)
        largest = float(torch.linalg.eigvals(hat).real.max())
        if largest >= 1.0:
            raise ValueError(
                f"form: rows {rows[:5]} have a leverage of {largest:.3g} under this curvature, which must be below 1; "
                "it is not the curvature of these data, so take form='first_order', or influence.Exact."
            )
        eye = torch.eye(len(hat), dtype=torch.float64, device=hat.device)
        return solved.T @ torch.linalg.solve(eye - hat, residual)

    # ------------------------------------------------------------------------------------------- gradients

    @contextmanager
    def _ready(self) -> Iterator[None]:
        """Evaluation mode at the point, for the block; modes and buffers are as before after it."""
        with ExitStack() as stack:
            for context in (gradients_enabled(), evaluating(self.model), frozen_buffers(self.model)):
                stack.enter_context(context)
            stack.enter_context(installed_buffers(self.model, Draws.of(self.values).buffers))
            yield

    def _gradients(self, batch: Batch, argument: str = "x") -> Tensor:
        """The gradient of each row's loss, ``[B, n]``."""
        return torch.cat(list(self._chunks(batch, argument)))

    def _chunks(self, batch: Batch, argument: str = "loader") -> Iterator[Tensor]:
        outputs = self.derivatives.outputs(batch.inputs)
        slopes = self._slopes(outputs, batch).unsqueeze(1).to(outputs)
        wrong = ~slopes.isfinite().flatten(1).all(1)
        if bool(wrong.any()):
            raise ValueError(
                f"{argument}: the loss of row {int(wrong.nonzero()[0, 0])} of a batch has a gradient that is NaN or "
                "infinite, so that there is no influence; leave the row out, or use a network in double precision."
            )
        for _, products in self.derivatives.products(batch.inputs, outputs, slopes):
            yield products[:, 0]

    def _slopes(self, outputs: Tensor, batch: Batch) -> Tensor:
        """The derivative of each row's loss by its outputs, ``[B, O]``."""
        with torch.enable_grad(), SubstituteMessenger(self.values):
            leaf = outputs.detach().clone().requires_grad_()
            loss = -self.model.likelihood(leaf).log_prob(batch.targets).sum()
            (slope,) = torch.autograd.grad(loss, leaf)
        return slope.flatten(1)

    def _solve(self, gradients: Tensor) -> Tensor:
        if not self._is_checked:
            self._is_checked = True
            self._check_convergence()
        return self.solve(gradients.double())

    def gradient_norm(self) -> float:
        """The norm of the gradient of the log joint density by the covered weights; 0 at a maximum."""
        with self._ready():
            return float(self.products.gradient().norm())

    def _check_convergence(self) -> None:
        gradient = self.products.gradient()
        gain = 0.5 * float(gradient @ self.solve(gradient.unsqueeze(0))[0])
        if not gain <= _NOT_AT_A_MAXIMUM:
            warnings.warn(
                f"guide: the log joint density has no maximum there (its gradient has norm {float(gradient.norm()):.3g}"
                f", a Newton step would gain {gain:.3g} nats), and influence is a derivative at a maximum; train "
                "longer, or call pyrobnn.influence.refit first.",
                stacklevel=4,
            )


def point_of(model: SupervisedModel, guide: Guide) -> Draws:
    """Copies of the values of all sites at the guide's point.

    Raises:
        TypeError: If it is no guide.
        ValueError: If it is no point, or of another model.
    """
    check_guide(model, guide)
    linearization = None if guide.facts.num_points == 1 else guide.linearization()
    if guide.facts.num_points != 1 and linearization is None:
        raise ValueError(
            f"guide: a {type(guide).__name__} is no point, which a Hessian could be taken at; pass a MAP or a Laplace "
            "guide, or take influence.PosteriorCovariance, which is for any posterior."
        )
    if linearization is not None:
        return Draws({name: value.detach().clone() for name, value in linearization.mode.items()})
    point = guide.starting_point()
    return Draws({name: value.detach().clone() for name, value in point.items()}, point.buffers)


def covered_sites(model: SupervisedModel, guide: Guide, names: Collection[str] | None) -> list[Site]:
    """The weights of the network among the guide's sites, or those that are named.

    Raises:
        TypeError: If ``names`` are no names.
        ValueError: If there is none, or no such weight.
    """
    like = next(guide.parameters()).detach()
    known = [site for group in lay_out(model, guide.layout, "diagonal", None, like) for site in group.sites]
    if names is None:
        return known
    if isinstance(names, str) or not all(isinstance(name, str) for name in names):
        raise TypeError(f"sites: expected names of sites, got {names!r}.")
    weights = {site.name for site in known}
    if unknown := [name for name in names if name not in weights]:
        raise ValueError(f"sites: there is no weight {unknown[0]!r}; the model has {', '.join(sorted(weights)[:8])}.")
    if not names:
        raise ValueError("sites: it names no site; leave it out for all weights.")
    by_name = {site.name: site for site in known}
    return [by_name[name] for name in dict.fromkeys(names)]
