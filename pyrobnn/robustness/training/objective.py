r"""Adversarial training: the likelihood at inputs that an inner maximization has made worse.

.. math::  L = -E_{w \sim q} \frac NB \sum_i \log p(y_i \mid x_i + \delta_i(w), w) + \lambda\, \mathrm{KL}(q \,\|\, p),
           \qquad \delta_i(w) \approx \arg\max_{\delta \in S} -\log p(y_i \mid x_i + \delta, w).

The perturbation belongs to the draw: it is made for the very weights that the loss is then computed with. During the
inner maximization the network is fixed and in evaluation mode; the loss is computed in training mode, once per draw, so
that running statistics follow the perturbed inputs. The divergence is that of the draw, counted once. With a point
(:class:`~pyrobnn.guides.MAP`) this is adversarial training (Madry et al. 2018); with any other guide each draw or
member meets its own attack. Goodfellow, Shlens & Szegedy (2015) mix in the clean loss (``clean_share``).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pyrobnn.core import schedules
from pyrobnn.core.arguments import check_number
from pyrobnn.core.explanations import explained
from pyrobnn.estimators import EstimatorSpec
from pyrobnn.guides.base import Guide
from pyrobnn.model.draws import Draws
from pyrobnn.model.likelihoods import ClassLikelihood
from pyrobnn.model.likelihoods.reductions import widened
from pyrobnn.objectives import DivergenceTerm, Evaluation, LogLikelihoodTerm, Objective, Parts, Run, Term
from pyrobnn.objectives.terms import run_model
from pyrobnn.robustness.training.attacked import attacking, tensor_inputs
from pyrobnn.robustness.training.perturbation import Perturbation

__all__ = ["AdversarialTraining", "clean_run", "over_data"]


@explained
class AdversarialTraining(Objective):
    """The ELBO at perturbed inputs, for any guide; use it with :func:`pyrobnn.fit`.

    ``history.log_likelihood`` is that of perturbed inputs. Members of an ensemble run one after another. With a radius
    of 0 this is the :class:`~pyrobnn.objectives.ELBO` itself.

    Args:
        perturbation: How inputs are made worse, such as :class:`ProjectedGradient`.
        clean_share: Weight of the log likelihood of the inputs as they are, from 0 to below 1; that of perturbed inputs
            has the rest. It costs a further run of the network for each draw.
        num_particles: Draws per evaluation, each with perturbations of its own.
        temperature: Weight of the divergence, or its schedule, as for :class:`~pyrobnn.objectives.ELBO`.
        estimator: How draws enter the layers, as there. The inner maximization sees one draw of the weights.
        terms: Further terms, such as :class:`LogitPairing`.

    Raises:
        TypeError: If ``perturbation`` is none; at the first step, if the model is no ``SupervisedModel``, or inputs are
            no tensor.
        ValueError: If a number is out of its range; at the first step, if inputs are beyond the perturbation's
            ``clip``, or it has a player that was not passed to ``fit``.
    """

    def __init__(
        self,
        perturbation: Perturbation,
        *,
        clean_share: float = 0.0,
        num_particles: int = 1,
        temperature: schedules.Schedule | None = None,
        estimator: EstimatorSpec = None,
        terms: Sequence[Term] = (),
    ) -> None:
        if not isinstance(perturbation, Perturbation):
            raise TypeError(
                f"perturbation: expected one of pyrobnn.robustness.training, such as ProjectedGradient(0.1), got "
                f"{perturbation!r}."
            )
        check_number("clean_share", clean_share, 0.0, 1.0, below=True)
        weight = None if temperature is None else schedules.resolve("temperature", temperature, allow_zero=True)
        own: list[Term] = [_PerturbedLogLikelihood(perturbation, clean_share - 1.0), DivergenceTerm(weight)]
        if clean_share:
            own.append(_CleanLogLikelihood(-clean_share))
        super().__init__([*own, *terms], num_particles, estimator=estimator)
        self.perturbation, self.vectorizes = perturbation, False

    def check_guide(self, guide: Guide) -> None:
        """Any guide will do; the perturbation's players must have been passed to ``fit``.

        Raises:
            ValueError: If they were not.
        """
        self.perturbation.check_players()

    def backward(self, *args: Any, **kwargs: Any) -> Parts:
        """As that of :class:`~pyrobnn.objectives.Objective`."""
        self.perturbation.begin()
        return super().backward(*args, **kwargs)

    def differentiable_loss(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> Tensor:
        """As that of :class:`~pyrobnn.objectives.Objective`."""
        self.perturbation.begin()
        return super().differentiable_loss(model, guide, *args, **kwargs)

    def arguments(self, draws: Draws, evaluation: Evaluation, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """The batch with inputs that are worse for this draw."""
        x, y = tensor_inputs(args)
        keep = torch.is_grad_enabled()
        with attacking(evaluation.model, draws) as network:
            return self.perturbation(network, x, y, keep=keep), *args[1:]


def clean_run(run: Run, evaluation: Evaluation) -> Run:
    """A run of the model on the inputs as they are, under the draw of ``run``; terms share it.

    It is made as ``run`` was, in training mode, but running statistics are not updated.
    """
    if "clean" not in run.further:
        model, step, draws = evaluation.model, evaluation.step, run.draws.settled()
        run.further["clean"] = run_model(model, step, draws, run.args, evaluation.kwargs, update=False, scored=False)
    return run.further["clean"]


def over_data(rows: Tensor, run: Run, evaluation: Evaluation) -> Tensor:
    r"""The sum over the data set, estimated from a batch: :math:`\frac NB \sum_i \omega_i r_i`.

    Args:
        rows: A number for each row of the run, ``[B]``.
        run: The run, whose batch may have weights ω of its rows.
        evaluation: The model and its number of data.
    """
    weight = run.args[2] if len(run.args) > 2 else None
    return evaluation.model.num_data / len(rows) * (rows if weight is None else weight * rows).sum()


class _PerturbedLogLikelihood(LogLikelihoodTerm):
    """The log likelihood at perturbed inputs, of smoothed labels if the perturbation says so."""

    def __init__(self, perturbation: Perturbation, weight: schedules.Schedule) -> None:
        super().__init__(weight)
        self.perturbation = perturbation

    def __call__(self, runs: Sequence[Run], evaluation: Evaluation) -> Tensor | float:
        """That of the draw, which the perturbation is told."""
        found = torch.as_tensor(runs[0].log_likelihood)
        if share := self.perturbation.label_smoothing:
            found = (1.0 - share) * found + share * _other_classes(runs[0], evaluation)
        self.perturbation.scored(found.detach())
        return found


class _CleanLogLikelihood(Term):
    """The log likelihood at the inputs as they are, which is maximized."""

    name = "clean_log_likelihood"

    def __call__(self, runs: Sequence[Run], evaluation: Evaluation) -> Tensor | float:
        """That of the draw."""
        return clean_run(runs[0], evaluation).log_likelihood


def _other_classes(run: Run, evaluation: Evaluation) -> Tensor:
    """N/B times the sum over rows of the mean log probability of all classes but the row's own.

    Raises:
        TypeError: If the model has no likelihood of classes.
    """
    likelihood = evaluation.model.likelihood
    if not isinstance(likelihood, ClassLikelihood):
        raise TypeError(
            f"label_smoothing: it needs a likelihood of classes, got {type(likelihood).__name__}; pass 0 to leave "
            "targets as they are."
        )
    log_p = likelihood.log_probabilities(widened(run.outputs))
    y = run.args[1]
    own = log_p.gather(-1, y.unsqueeze(-1)).squeeze(-1)
    others = (log_p.sum(-1) - own) / (log_p.shape[-1] - 1)
    return over_data(others.reshape(len(y), -1).sum(1), run, evaluation)
