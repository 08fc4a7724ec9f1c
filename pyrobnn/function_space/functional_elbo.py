r"""The functional ELBO: a posterior over functions is fitted to the likelihood and to a prior over *functions*.

.. math::  L = \frac NB \sum_{i \in \mathrm{batch}} E_q \log p(y_i \mid f(x_i))
           - \alpha\, \mathrm{KL}\big[q(f^X) \,\|\, p(f^X)\big], \qquad X = \mathrm{batch} \cup \mathrm{context}.

With α = 1 and X covering all data, L is a lower bound of the log evidence under the prior, short of it by the KL of
q(f^X) from the posterior at X. With other measurement points it is an estimate that trusts the KL at X in place of
that of the process (Sun et al., *Functional variational Bayesian neural networks*, 2019).

**q(f)** is Gaussian at any points: of an ensemble the mean and covariance of its members plus λ,

.. math::  m = \tfrac1M \sum_i g_i, \qquad k(x, x') = \tfrac1M \sum_i (g_i - m)(x)\, (g_i - m)(x')^\top + \lambda I
           \, [x = x'],

the deep ensemble as a Gaussian process (Deng et al., *DE-GP*); of other guides by linearization or by draws
(:mod:`pyrobnn.function_space.guide_functions`). Both terms take this Gaussian, the first by samples of it. As in any
ensemble, members' own parameters receive M times the gradient.

**The KL of processes is infinite** where one is singular to the other, as functions of a finite network are to most
kernels' processes. At finitely many points it is finite, if covariances have full rank, which λ sees to in q; but it
grows without bound with the number of points. ``divergence="kl"`` is this one, as published, but that λ is a share of
the variance at each point: the published share of the mean over all points is set by context points far from the data,
whose variance is large, and then is noise at the data. ``divergence="regularized"`` is the KL between measures with
noise added to both,

.. math::  D_\gamma = \mathrm{KL}\big[N(m_q, \Sigma_q + n \gamma I) \,\|\, N(m_p, \Sigma_p + n \gamma I)\big],

n the number of points, the estimator of the regularized KL of Cinquin & Bamler, *Regularized KL-divergence for
well-defined function-space variational inference* (2024, GFSVI), which is finite for any q and p as n grows, and equals
0 only if q is p. Use it where the prior is a smooth kernel and q a finite network without noise of its own.

**Weight of the KL.** The bound's is 1 in nats for the whole data set (``scaling="bound"``). The code published with
DE-GP minimizes the mean negative log likelihood plus α times the KL divided by the *batch* size, that is α N / B here:
``scaling="batch_size"``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from pyrobnn.core import schedules
from pyrobnn.core.arguments import check_positive, check_positive_int
from pyrobnn.core.explanations import explained
from pyrobnn.function_space.function_priors import FunctionPrior, Kernel, prior_of
from pyrobnn.function_space.gaussians import Jitter, LowRankFunctions, functional_kl
from pyrobnn.function_space.guide_functions import FunctionsOf, GuideFunctions, batch_of, functions_of
from pyrobnn.function_space.measurement import Context, ContextPoints
from pyrobnn.guides.base import Guide
from pyrobnn.model.supervised import SupervisedModel
from pyrobnn.objectives.objective import Objective
from pyrobnn.objectives.parts import NonFiniteLossError, Parts, check_finite
from pyrobnn.objectives.terms import DivergenceTerm, Evaluation, LogLikelihoodTerm, Run, Term
from pyrobnn.steps.base import Step

__all__ = ["FunctionalELBO"]

_NODES = 20


class _Expected(LogLikelihoodTerm):
    """The expected log likelihood under the Gaussian of functions, which the objective computes."""

    vectorizes = False

    def __call__(self, runs: Sequence[Run], evaluation: Evaluation) -> Tensor:
        raise NotImplementedError("the functional ELBO computes its terms together.")


class _Functional(DivergenceTerm):
    """The divergence of the functions, likewise."""

    vectorizes = False

    def __call__(self, runs: Sequence[Run], evaluation: Evaluation) -> Tensor:
        raise NotImplementedError("the functional ELBO computes its terms together.")


@explained
class FunctionalELBO(Objective):
    """The functional ELBO; use it with :func:`pyrobnn.fit`, Pyro's ``SVI``, or as a module.

    Args:
        prior: The prior over functions: a kernel ``(x1, x2) -> K [n1, n2]`` or ``[C, n1, n2]`` (one of your own,
            GPyTorch's, that of the infinitely wide network), or :class:`~pyrobnn.function_space.RandomNetworks`.
        context: Where there are no data: a :class:`~pyrobnn.function_space.DataBox`, a function of the batch's inputs
            (an augmentation), or a loader of unlabeled inputs, begun again when it ends (its position is not part of
            checkpoints); None measures functions at the batch alone.
        functions: How a guide's functions become Gaussian: ``"members"`` of an ensemble, ``"draws"``,
            ``"linearized"``; ``"auto"`` for members, else linearized where draws are made of normal noise, else draws.
        num_draws: Draws for ``"draws"``.
        num_samples: Functions drawn from q for the expected log likelihood, in mirrored pairs. Where there is one
            output, nodes of a quadrature in their place, 20 at most, which is exact for Normal noise.
        jitter: λ: a share of the functions' variance at a point, which carries no gradient; or a
            :class:`~pyrobnn.function_space.Jitter`: the published one is ``Jitter(0.05)``.
        prior_jitter: A share of the mean variance of the prior, added to its covariance; or a ``Jitter``.
        divergence: ``"kl"``, or ``"regularized"`` with ``gamma``.
        gamma: γ of the regularized KL, a variance per measurement point; needed for it, and for it alone.
        temperature: Weight α of the KL, or a schedule.
        scaling: ``"bound"`` counts the KL once for the whole data set, ``"batch_size"`` N / B times, as published.
        terms: Further terms of the objective that are computed ``"after"`` it.
        max_bytes: Budget of the Jacobian of ``"linearized"``.

    Attributes:
        functions: As given.
        posterior: Mean and covariance of the functions at the last measurement points, without gradients.

    Raises:
        TypeError: If an argument is of the wrong kind. At the first step, if the model is no ``SupervisedModel`` or has
            latent sites in its likelihood, or the guide is a point.
        ValueError: If a number or name is out of range. At a step, if context points are no inputs of the network, or a
            covariance is not positive definite after its jitter (the message has both).
    """

    def __init__(
        self,
        prior: FunctionPrior | Kernel,
        context: Context = None,
        *,
        functions: FunctionsOf = "auto",
        num_draws: int = 10,
        num_samples: int = 32,
        jitter: float | Jitter = 0.05,
        prior_jitter: float | Jitter = 0.05,
        divergence: Literal["kl", "regularized"] = "kl",
        gamma: float | None = None,
        temperature: schedules.Schedule = 1.0,
        scaling: Literal["bound", "batch_size"] = "bound",
        terms: Sequence[Term] = (),
        max_bytes: int = 2**30,
    ) -> None:
        for name, given, known in (
            ("functions", functions, get_args(FunctionsOf)),
            ("divergence", divergence, ("kl", "regularized")),
            ("scaling", scaling, ("bound", "batch_size")),
        ):
            if given not in known:
                raise ValueError(f"{name}: expected {' or '.join(map(repr, known))}, got {given!r}.")
        for name, count in (("num_draws", num_draws), ("num_samples", num_samples), ("max_bytes", max_bytes)):
            check_positive_int(name, count)
        if (gamma is not None) != (divergence == "regularized"):
            raise ValueError("gamma: it is that of divergence='regularized', so pass both or neither.")
        if gamma is not None:
            check_positive("gamma", gamma, "variance")
        for term in terms:
            if not isinstance(term, Term):
                raise TypeError(f"terms: expected terms of an objective, got {type(term).__name__}.")
            if term.when != "after":
                raise ValueError(
                    f"terms: {term.name!r} is computed {term.when!r} draws of the weights; the functional ELBO has "
                    "functions in their place and takes terms that are computed 'after' it."
                )
        self.prior, self.context = prior_of(prior), ContextPoints(context)
        self.functions: FunctionsOf = functions
        self.num_draws, self.num_samples, self.max_bytes = num_draws, num_samples, max_bytes
        self.jitter = Jitter.of(jitter, "jitter", by_point=True)
        self.prior_jitter = Jitter.of(prior_jitter, "prior_jitter")
        if self.prior_jitter.by_point:
            raise ValueError("prior_jitter: the prior's is the same at all points; pass a Jitter with by_point=False.")
        self.gamma, self.scaling = gamma, scaling
        self.posterior: LowRankFunctions | None = None
        self._made: tuple[Any, Any, Step, bool] | None = None
        weight = schedules.resolve("temperature", temperature, allow_zero=True)
        super().__init__([_Expected(), _Functional(weight), *terms])

    def __getstate__(self) -> dict[str, Any]:
        """The state without the step and the last functions."""
        return super().__getstate__() | {"_made": None, "posterior": None}

    # ------------------------------------------------------------------------------------------- the step

    def check_guide(self, guide: Guide) -> None:
        """Refuses guides that have no distribution over functions to train.

        Raises:
            TypeError: If it is a point, or ``functions`` is not possible for it.
        """
        facts = guide.facts
        if facts.num_points == 1 or not facts.is_ready:
            raise TypeError(
                f"guide: {type(guide).__name__} is trained as a point, so it has no distribution over functions; use "
                "an ensemble (DeltaMixture), MeanField or LowRankNormal."
            )
        if self.functions == "members" and facts.num_components is None:
            raise TypeError(f"functions: {type(guide).__name__} has no members; pass 'linearized' or 'draws'.")
        if self.functions == "linearized" and facts.noise_size is None:
            raise TypeError(
                f"functions: {type(guide).__name__} does not make its draws from normal noise, so they cannot be "
                "linearized; pass 'auto'."
            )

    def step(self, model: Any, guide: Guide) -> tuple[Step, int]:
        """All draws of a training step are in one graph: in a vectorized pass if the guide has one."""
        if self._made is not None:
            cached_guide, cached_model, step, was_vectorized = self._made
            if cached_guide is guide and cached_model is model and step.vectorized == was_vectorized:
                return step, 1
        self.check_guide(guide)
        step = guide.step(model)
        if not step.vectorized or (self._made is not None and self._made[:2] == (guide, model)):
            step = guide.step(model, sequential=False)
        self._made = guide, model, step, step.vectorized
        return step, 1

    def losses(
        self,
        model: Any,
        step: Step,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        *,
        groups: int = 1,
        guide: Any = None,
    ) -> Iterator[Parts]:
        """The functional ELBO whole, then one piece for each term ``"after"`` it.

        Raises:
            NonFiniteLossError: If a piece is NaN or infinite.
        """
        if not isinstance(guide, Guide):
            raise TypeError(f"guide: the functional ELBO needs a guide, got {type(guide).__name__}.")
        x, y, weight = batch_of(model, args, kwargs)
        evaluation = Evaluation(model, guide, step, args, kwargs)
        context = self.context.beside(x)
        made = GuideFunctions(model, step, x, context)
        kind = self.functions
        if kind == "auto":
            facts = guide.facts
            by_draws: FunctionsOf = "draws" if facts.noise_size is None else "linearized"
            kind = by_draws if facts.num_components is None else "members"
        q = functions_of(
            guide,
            made,
            kind,
            self.num_draws,
            self.jitter,
            self.max_bytes,
            lambda: guide.step(model, sequential=False),
        )
        points = x if context is None else torch.cat([x, context])
        values = {
            "log_likelihood": self._expected(model, q, made, y, weight),
            "divergence": self._divergence(model, q, points),
        }
        weights = self.weights(model, guide)
        if self.scaling == "batch_size":
            weights["divergence"] *= model.num_data / made.rows
        parts = Parts(values, weights, model.num_data, divergence_name="KL")
        check_finite(parts)
        self.posterior = LowRankFunctions(q.mean.detach(), q.factor.detach(), q.ridge)
        yield parts
        yield from self._after(evaluation, weights, model.num_data)

    # ------------------------------------------------------------------------------------------ the terms

    def _divergence(self, model: SupervisedModel, q: LowRankFunctions, points: Any) -> Tensor:
        with torch.no_grad():
            p = self.prior(model, points, q.mean.shape[1], q.mean.detach(), self.prior_jitter)
        if self.gamma is not None:
            noise = len(q.mean) * self.gamma
            q, p = q.with_noise(noise), p.with_noise(noise)
        return functional_kl(q, p)

    def _expected(
        self, model: SupervisedModel, q: LowRankFunctions, made: GuideFunctions, y: Tensor, weight: Tensor | None
    ) -> Tensor:
        """``N / B`` times the log likelihood of the batch, averaged over functions of the Gaussian."""
        rows = made.rows
        batch = q.first(rows)
        if batch.mean.shape[1] == 1:
            functions, shares = batch.at_nodes(min(self.num_samples, _NODES))
        else:
            functions = batch.rsample(self.num_samples)
            shares = functions.new_full((len(functions),), 1.0 / len(functions))
        outputs = functions.reshape(-1, *made.shape)
        model.likelihood.check_shape(outputs[:rows], y)
        repeated = y.repeat(len(shares), *[1] * (y.dim() - 1))
        try:
            scores = shares @ model.likelihood(outputs).log_prob(repeated).reshape(len(shares), rows)
        except ValueError as error:
            if bool(outputs.isfinite().all()):
                raise
            raise NonFiniteLossError("the objective became non-finite: functions of the posterior.") from error
        if weight is not None:
            scores = torch.where(weight > 0, scores * weight, 0.0)
        return scores.sum() * (model.num_data / rows)
