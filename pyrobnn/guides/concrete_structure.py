r"""A concrete distribution over structure (deep Bayesian structure networks).

.. math::  \alpha = \mathrm{softmax}\big((\theta + \beta g) / \tau\big), \quad g \sim \mathrm{Gumbel}, \qquad
           q(\alpha) = \mathrm{Concrete}(\theta / \beta,\; \tau / \beta),

for each edge with a choice among K operations, and its binary case :math:`\sigma((\theta + \beta l) / \tau)` with
logistic :math:`l` for gates. The operation that is largest is k with probability :math:`\mathrm{softmax}(\theta /
\beta)_k`. A noise scale β < 1 sharpens ("cold posterior"); τ is the temperature of the relaxation. Both may follow a
schedule.

The KL to the prior has no closed form; it is estimated from the draw itself in log space, where nothing underflows,
with the normalizers of both densities. At a reparameterized draw :math:`\log q` depends on the noise and on τ/β alone,

.. math::  \log q = \log\Gamma(K) + (K - 1) \log\tfrac\tau\beta - \sum_k g_k - K \log\sum_k e^{-g_k},

so that only :math:`-\log p` has a gradient. This KL is that of the relaxed choices. It exceeds the discrete ones' by an
amount that does not vanish as τ goes to 0 (at one temperature for both, it does not depend on τ at all), and so it
holds :math:`\mathrm{softmax}(\theta / \beta)` closer to the prior than the exact posterior over discrete structures is.
With ``kl="discrete"`` the closed KL of the choices themselves takes its place, as in Jang et al. (2017): the
objective's limit as τ goes to 0 is the ELBO of discrete structures, whose optimum is exact where edges are independent.
Deng, Luo, Zhu & Zhang, *Measuring Uncertainty through Bayesian Learning of Deep Neural Network Structure* (2019). All
sites' logits are one flat vector, and one block of noise serves a draw.
"""

# Pyro declares the attributes of torch distributions on subclasses only.
# mypy: disable-error-code="attr-defined"

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any, Literal

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyrobnn.core import schedules
from pyrobnn.core.arguments import check_non_negative
from pyrobnn.core.explanations import explained
from pyrobnn.distributions.concrete import BinaryConcrete, Concrete, relaxed_of
from pyrobnn.estimators.base import Estimator
from pyrobnn.guides.base import Guide
from pyrobnn.guides.components.concrete_blocks import find_blocks, relaxed_prior, starting_logits
from pyrobnn.guides.components.concrete_divergence import discrete_divergence, log_density_of_values, relaxed_divergence
from pyrobnn.model.divergence import Divergence, PriorTerm
from pyrobnn.model.draws import Draws
from pyrobnn.model.facts import Facts
from pyrobnn.steps.autograd import AutogradStep
from pyrobnn.steps.base import Step

__all__ = ["ConcreteStructure"]


@explained
class ConcreteStructure(Guide):
    """A posterior over sites of structure (:mod:`pyrobnn.structure`); weights go to other guides.

    Combine the two by :class:`~pyrobnn.guides.Composite`::

        guide = Composite(model, [("*structure*", ConcreteStructure), ("*", MAP)])

    Each draw of a training step is one structure for its batch; ``ELBO(num_particles=G)`` takes G of them on
    the whole batch, ``estimator=PerGroup(G)`` G on its G parts. Schedules count the gradient steps of this library's
    objectives; under another objective call :meth:`count_step` before each step.

    Args:
        model: The Pyro model.
        init: Starting logits by site, ``{site: [*site shape]}``; those of the prior, slightly scattered, if None.
        temperature: Temperature τ: a number, a schedule (:mod:`pyrobnn.schedules`) or a function of the step; the first
            site's prior temperature if None.
        beta: Scale β of the noise, likewise.
        init_scale: Standard deviation of the scatter of the starting logits.
        straight_through: Run the network with one-hot (zero-one) structures and give them the gradient of the relaxed
            draw. The KL is the relaxed draw's, and draws have no density.
        kl: ``"relaxed"``, as in the paper, or ``"discrete"``: see above. Pyro's own objectives use only the first.
        anneal_prior: Measure the KL of the relaxed choices to the prior at temperature τ instead of its own, so that
            both relaxations are sharpened together. Pyro's own objectives keep the model's.
        learned: Whether the logits are trained; otherwise the structure stays as random as it starts.
        example: Arguments of one run, for models whose sites are not known without data.
        sites: Names of the sites that the guide is for; all of them if None.

    Attributes:
        num_steps: Gradient steps so far (a buffer that stays on the CPU).

    Raises:
        TypeError: If ``init`` is of another kind.
        ValueError: If a site is no choice on a simplex or the unit interval, a temperature or scale is not positive, or
            a starting value does not fit.
    """

    def __init__(
        self,
        model: Callable[..., Any],
        init: Mapping[str, Tensor] | None = None,
        *,
        temperature: schedules.Schedule | Mapping[str, Any] | None = None,
        beta: schedules.Schedule | Mapping[str, Any] = 1.0,
        init_scale: float = 1e-3,
        straight_through: bool = False,
        kl: Literal["relaxed", "discrete"] = "relaxed",
        anneal_prior: bool = False,
        learned: bool = True,
        example: tuple[Any, ...] | None = None,
        sites: Collection[str] | None = None,
    ) -> None:
        super().__init__(model, example=example, sites=sites)
        check_non_negative("init_scale", init_scale, "standard deviation")
        if kl not in ("relaxed", "discrete"):
            raise ValueError(f"kl: expected 'relaxed' or 'discrete', got {kl!r}.")
        self._blocks = find_blocks(list(self.layout.values()))
        self._block_of = {site.name: block for block in self._blocks for site in block.sites}
        if temperature is None:
            prior: Any = relaxed_prior(next(iter(self.layout.values())).prior)
            temperature = 1.0 if prior is None else float(prior.temperature)
        self._temperature, self._beta = schedules.resolve("temperature", temperature), schedules.resolve("beta", beta)
        start = starting_logits(self._blocks, init)
        self.logits = nn.Parameter(start + init_scale * torch.randn_like(start), requires_grad=learned)
        self.register_buffer("num_steps", torch.tensor(0))
        self.straight_through, self.anneal_prior, self.learned = straight_through, anneal_prior, learned
        self.kl = kl

    @property
    def flat_logits(self) -> nn.Parameter:
        """The logits θ of all sites, read past Pyro's attribute hooks."""
        return self._parameters["logits"]  # type: ignore[return-value]

    @property
    def temperature(self) -> float:
        """The temperature τ of the last gradient step (at the start, of the first)."""
        return schedules.value_at("temperature", self._temperature, self._step)

    @property
    def beta(self) -> float:
        """The scale β of the noise of the last gradient step."""
        return schedules.value_at("beta", self._beta, self._step)

    @property
    def is_fitted(self) -> bool:
        """Whether a gradient step has been taken."""
        return int(self._buffers["num_steps"]) > 0  # type: ignore[arg-type]

    @property
    def _step(self) -> int:
        return max(int(self._buffers["num_steps"]) - 1, 0)  # type: ignore[arg-type]

    def config(self) -> dict[str, Any]:
        """Constructor arguments; of a schedule that is a function of your own, its present value."""
        return {
            "temperature": schedules.spec(self._temperature, self._step),
            "beta": schedules.spec(self._beta, self._step),
            "straight_through": self.straight_through,
            "kl": self.kl,
            "anneal_prior": self.anneal_prior,
            "learned": self.learned,
        }

    def count_step(self) -> None:
        """Counts a gradient step, for the schedules; steps of this library's objectives do that at their first draw.

        Raises:
            ValueError: If a schedule has ended.
        """
        self._buffers["num_steps"] += 1  # type: ignore[operator, assignment]

    def step(
        self,
        model: Callable[..., Any] | None,
        estimators: Mapping[str, Estimator] | None = None,
        *,
        sequential: bool = True,
        vectorize: bool = True,
    ) -> Step:
        """A step whose first draw advances the schedules."""

        def begin() -> None:
            if torch.is_grad_enabled():  # an evaluation without gradients is not counted
                self.count_step()

        return AutogradStep(self.layout, self.rsample, self.divergence, begin=begin, restart=self._check_schedules)

    def _check_schedules(self, remaining: int | None) -> None:
        """Refuses a training of ``remaining`` more steps if a schedule ends before it does."""
        total = int(self._buffers["num_steps"]) + (remaining or 0)  # type: ignore[arg-type]
        for name, schedule in (("temperature", self._temperature), ("beta", self._beta)):
            schedules.check_length(name, schedule, total)

    def _apply(self, fn, recurse=True):  # type: ignore[no-untyped-def]
        count = self._buffers["num_steps"]
        super()._apply(fn, recurse)
        self._buffers["num_steps"] = count  # stays on the CPU: it is read in every step, without a synchronization
        return self

    # ------------------------------------------------------------------------------------------ distribution

    @property
    def facts(self) -> Facts:
        """Independent sites, with densities unless draws are one-hot."""
        names = frozenset(self.layout)
        independent = tuple(frozenset({name}) for name in self.layout)
        return Facts(sites=names, density=frozenset() if self.straight_through else names, independent=independent)

    def site_logits(self, name: str) -> Tensor:
        """The logits θ of a site, of its shape."""
        block, site = self._block_of[name], self.layout[name]
        return block.piece(self.flat_logits, site).view(site.shape)

    def probabilities(self, name: str) -> Tensor:
        """Probability of each choice to be the largest, ``softmax(θ / β)``, or of each gate to be open."""
        scaled = self.site_logits(name) / self.beta
        return scaled.softmax(-1) if self._block_of[name].num_choices else scaled.sigmoid()

    def marginal(self, name: str) -> dist.Distribution:
        """The site's concrete distribution, with logits θ/β and temperature τ/β."""
        beta, block = self.beta, self._block_of[name]
        family = Concrete if block.num_choices else BinaryConcrete
        found = family(self.temperature / beta, self.site_logits(name) / beta, self.straight_through)
        return found.to_event(self.layout[name].event_dim - len(found.event_shape))

    def starting_point(self) -> Draws:
        """The probabilities of the choices, where other guides start."""
        return Draws({name: self.probabilities(name).detach() for name in self.layout})

    def rsample(self, noise: Tensor | None = None) -> Draws:
        """One draw, with gradients to the logits; its record holds the log densities of its noise."""
        values: dict[str, Tensor] = {}
        log_densities: dict[str, Tensor] = {}
        tau, beta, logits = self.temperature, self.beta, self.flat_logits
        for block in self._blocks:
            window = logits[block.start : block.stop] if len(self._blocks) > 1 else logits
            gumbel = block.noise(logits, ())
            value = block.squash((window.view(block.shape) + beta * gumbel) / tau, self.straight_through)
            with torch.no_grad():
                log_density = block.log_density_of_noise(gumbel, tau / beta)
            relaxed = relaxed_of(value)
            for site, rows in block.rows:
                drawn = value
                if len(block.rows) > 1 or value.shape != site.shape:
                    drawn = value[rows].view(site.shape)
                    drawn.relaxed = relaxed[rows].view(site.shape)
                values[site.name] = drawn
                log_densities[site.name] = log_density[rows]
        return Draws({name: values[name] for name in self.layout}, record=log_densities)

    @torch.no_grad()
    def sample(self, num_samples: int) -> Draws:
        """Draws ``{site: [num_samples, *site shape]}``: relaxed, or one-hot with ``straight_through``."""
        values = {}
        tau, beta, logits = self.temperature, self.beta, self.flat_logits
        for block in self._blocks:
            noise = block.noise(logits, (num_samples,))
            scores = (logits[block.start : block.stop].view(block.shape) + beta * noise) / tau
            value = block.squash(scores, self.straight_through)
            for site, rows in block.rows:
                values[site.name] = value[:, rows].reshape(num_samples, *site.shape)
        return Draws({name: values[name] for name in self.layout})

    def log_prob(self, draws: Mapping[str, Tensor]) -> Tensor:
        """Log density of relaxed draws ``{site: [K, *site shape]}``, shape ``[K]``.

        Raises:
            NotImplementedError: If draws are one-hot.
        """
        if self.straight_through:
            raise NotImplementedError(
                "ConcreteStructure with straight_through=True draws one-hot structures: it has no density."
            )
        return super().log_prob(draws)

    def divergence(self, draws: Draws, priors: Mapping[str, PriorTerm]) -> Divergence:
        """``log q - log p`` of the draw, in log space (see above), or the KL of the discrete choices.

        Raises:
            ValueError: If the KL of discrete choices is requested, but a prior is no relaxed one.
        """
        if self.kl == "discrete":
            exact = {}
            for name, term in priors.items():
                logits = self.site_logits(name) / self.beta
                kl = discrete_divergence(self._block_of[name], self.layout[name], logits, term.distribution)
                exact[name] = term.sum(kl)
            return Divergence.of_sites(exact, 0.0, exact=True)
        log_densities, beta = draws.record or {}, self.beta
        concrete = self.temperature / beta
        against = self.temperature if self.anneal_prior else None
        terms = {}
        for name, term in priors.items():
            block, site, value = self._block_of[name], self.layout[name], draws[name]
            log_q = log_densities.get(name)
            if log_q is None:
                log_q = log_density_of_values(block, value, self.site_logits(name) / beta, concrete)
            log_q = log_q.view(site.shape[: len(site.shape) - bool(block.num_choices)])
            terms[name] = term.sum(relaxed_divergence(block, value, log_q, term.distribution, against))
        return Divergence.of_sites(terms, 0.0, exact=False)
