r"""Mean-field Gaussian posterior (Bayes by Backprop).

.. math::  q(w) = \prod_i N(w_i; \mu_i, \sigma_i^2), \qquad \sigma = e^{\psi},

over the unconstrained values of all latent sites (a site on the positive reals is log-normal, and so on). For a
Normal prior :math:`N(m, s^2)` the KL is closed,

.. math::  \mathrm{KL} = \sum_i \log\frac{s_i}{\sigma_i} + \frac{\sigma_i^2 + (\mu_i - m_i)^2}{2 s_i^2} - \frac12.

Graves (2011); Blundell, Cornebise, Kavukcuoglu & Wierstra, *Weight Uncertainty in Neural Networks* (2015).
Parameters are two flat vectors of length ``num_latents``; a training step writes one draw in place and computes
its gradients by hand, which costs a fifth of automatic differentiation through one distribution per site.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from functools import partial
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyrobnn.arguments import check_positive
from pyrobnn.estimators import Estimator
from pyrobnn.guides.base import Guide, Init, Site, initial_values
from pyrobnn.guides.flat import accumulate, flat_normal_prior, independent_normal, release
from pyrobnn.guides.mean_field_step import Step
from pyrobnn.guides.prefetch import prefetched

__all__ = ["MeanField"]


_SMALLEST_PULL = 1e-20  # below it (annealing starts at 0) dividing by it might overflow


class MeanField(Guide):
    """Independent Gaussians over the model's latent sites.

    Args:
        model: The Pyro model.
        init: Where the means start: None (the weights the network was converted with), another network,
            ``"prior"``, ``"prior_mean"``, a dict of site values or a function ``(name, prior) -> value``.
        init_scale: Starting standard deviation in unconstrained space; small, because a deep network fed with
            large weight noise does not train.
        antithetic: In training steps, let eight draws in a row share one block of random numbers: on the quarters
            of the flat vector they bear the signs of four orthogonal (Hadamard) rows, each followed by its mirror
            image. First-order noise cancels across each pair; noise of second order averages over the eight as over
            four fresh pairs; and random numbers cost an eighth. At fixed parameters each draw is distributed as q
            and each gradient unbiased. Across a parameter update later draws depend on earlier ones, an effect of
            the order of the learning rate; with ``num_particles`` a multiple of eight there is none.
        example: Arguments of one run, for models whose sites are not known without data.
        only: Names of the sites that the guide is for; all of them if None.

    Raises:
        ValueError: If ``init_scale`` is not positive or a starting value does not fit.
    """

    def __init__(
        self,
        model: Callable[..., Any],
        init: Init = None,
        *,
        init_scale: float = 1e-2,
        antithetic: bool = True,
        example: tuple[Any, ...] | None = None,
        only: Collection[str] | None = None,
    ) -> None:
        super().__init__(model, example=example, only=only)
        check_positive("init_scale", init_scale, "standard deviation")
        loc = self.join(initial_values(model, self.sites, init))
        self.loc = nn.Parameter(loc)
        self.log_scale = nn.Parameter(torch.full_like(loc, math.log(init_scale)))
        self.antithetic = antithetic
        self.flat_prior = flat_normal_prior(self.flat_order, self.flat_loc.detach())
        self._step: Step | None = None

    # The flat parameters are read through these, past Pyro's attribute hooks (which would enter them in the
    # global parameter store).

    @property
    def flat_loc(self) -> nn.Parameter:
        """Means of the flat vector."""
        return self._parameters["loc"]  # type: ignore[return-value]

    @property
    def flat_log_scale(self) -> nn.Parameter:
        """Log standard deviations of the flat vector."""
        return self._parameters["log_scale"]  # type: ignore[return-value]

    def scale_parameters(self) -> list[nn.Parameter]:
        """The parameters that are (log) scales, for a learning rate of their own."""
        return [self.flat_log_scale]

    def config(self) -> dict[str, Any]:
        """Constructor arguments."""
        return {"antithetic": self.antithetic}

    def factor(self, site: Site) -> dist.Distribution:
        """The site's Gaussian, pushed through the transform to its support."""
        window = slice(site.offset, site.offset + site.numel)
        loc = self.flat_loc[window].view(site.unconstrained_shape)
        scale = self.flat_log_scale[window].view(site.unconstrained_shape).exp()
        return independent_normal(site, loc, scale)

    def draw(self, noise: Tensor | None = None) -> dict[str, Tensor]:
        """One reparameterised draw, ``μ + σε``; ``noise`` is ε as a flat vector if it is given."""
        noise = torch.randn_like(self.flat_loc) if noise is None else noise
        return self.constrain(self.split(self.flat_loc + self.flat_log_scale.exp() * noise))

    def sample(self, num_samples: int) -> dict[str, Tensor]:
        """Draws ``{site: [num_samples, *site shape]}``, one block of random numbers for all of them."""
        return self._sample(num_samples, None)

    def sample_blocks(self, sizes: Iterable[int]) -> Iterator[dict[str, Tensor]]:
        """Blocks of draws, on a CPU each made while the one before it is used; torch's random state gives a seed."""
        device = self.flat_loc.device
        generator = torch.Generator(device).manual_seed(int(torch.randint(2**62, ())))
        make = partial(self._sample, generator=generator)
        yield from prefetched(make, sizes) if device.type == "cpu" else map(make, sizes)

    @torch.no_grad()
    def _sample(self, num_samples: int, generator: torch.Generator | None) -> dict[str, Tensor]:
        noise = self.flat_loc.new_empty((num_samples, self.num_latents)).normal_(generator=generator)
        scale = self.flat_log_scale.exp()
        return self.constrain(self.split(torch.addcmul(self.flat_loc, noise, scale, out=noise)))

    # ------------------------------------------------------------------------------ training steps

    def begin_step(self) -> None:
        """Forgets what a step that was broken off has left."""
        if self._step is not None:
            self._step.forget()

    def write_draw(self, noise: Tensor | None = None) -> tuple[dict[str, Tensor], Tensor | float]:
        """One draw written in place, as leaf tensors, and the KL of the sites that ``flat_prior`` covers.

        A loss of the values is differentiated as usual; :meth:`pull_back` then turns the leaves' gradients into
        the parameters'. At most one draw is alive at a time. ``noise`` is ε as a flat vector if it is given; the next
        draw then starts a new antithetic group.
        """
        step = self._ready_step()
        with torch.no_grad():
            if noise is None:
                step.refresh_noise(self.antithetic)
            else:
                step.noise.copy_(noise)
                step.turn = 0
            kl = self._write_scale(step)
            torch.addcmul(self.flat_loc, step.scale, step.noise, out=step.value)
        return self.constrain(step.leaves.values), kl

    def noise_gradient(self, loss: Tensor) -> Tensor:
        """The gradient ``∂L/∂ε = σ ∂L/∂u`` of a loss of the last written draw, ``[num_latents]``."""
        assert self._step is not None, "write_draw comes before noise_gradient"
        return self._step.leaves.gradient_of(loss).mul_(self._step.scale)

    def _ready_step(self) -> Step:
        """Buffers that fit the parameters as they are now; a new draw is about to be made."""
        step = self._step
        if step is None or step.value.device != self.flat_loc.device or step.value.dtype != self.flat_loc.dtype:
            step = self._step = Step(self.flat_loc, self.flat_order)
        if self.flat_prior is not None and self.flat_prior.kind != (step.value.dtype, step.value.device):
            self.flat_prior = None  # the objective rebuilds it from the moved model
        step.is_layerwise = False
        return step

    def pull_back(self, kl_weight: float) -> None:
        """Adds the gradients of the last draw's loss, and of ``kl_weight`` times its flat KL, to the parameters."""
        step = self._step
        assert step is not None, "write_draw comes before pull_back"
        with torch.no_grad():
            if step.is_layerwise:
                self._pull_back_layers(step, kl_weight)
                return
            release(self.flat_loc, step.leaves.gradient)
            release(self.flat_log_scale, step.by_log_scale)
            by_value, by_log_scale = step.leaves.collect(), step.by_log_scale
            prior, size = step.prior, 0
            if prior is not None:
                size = prior.size
                head, scale, noise = by_log_scale[:size], step.scale[:size], step.noise[:size]
                constant = head.new_tensor(-kl_weight)
                # dL/dψ = σ (ε dL/dw + p σ) - λ with p = λ / s², in as few passes over memory as can be.
                pull = kl_weight * prior.precision if isinstance(prior.precision, float) else 0.0
                if pull > _SMALLEST_PULL:
                    torch.addcmul(scale, noise, by_value[:size], value=1.0 / pull, out=head)
                    torch.addcmul(constant, scale, head, value=pull, out=head)
                else:
                    torch.mul(noise, by_value[:size], out=head)
                    torch.addcmul(constant, head, scale, out=head)
                    head.add_(scale * scale * prior.precision, alpha=kl_weight)
                prior.add_pull(by_value[:size], self.flat_loc[:size], kl_weight)
            torch.mul(step.noise[size:], by_value[size:], out=by_log_scale[size:])
            by_log_scale[size:].mul_(step.scale[size:])
            accumulate(self.flat_loc, by_value)
            accumulate(self.flat_log_scale, by_log_scale)

    # ------------------------------------------------------------------------ steps under an estimator

    def gaussians(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Means and standard deviations of the real sites, with gradients, for estimators."""
        locs, scales = self.split(self.flat_loc), self.split(self.flat_log_scale.exp())
        return {name: (locs[name], scales[name]) for name, site in self.sites.items() if site.is_real}

    def write_gaussians(self, estimators: Mapping[str, Estimator]) -> tuple[dict[str, Tensor], Tensor | float]:
        """Like :meth:`write_draw`, with a distribution in place of a draw at the sites named in ``estimators``."""
        step = self._ready_step()
        with torch.no_grad():
            release(self.flat_loc, step.follow(self.flat_loc).gradient)  # layers may write there before pull_back
            release(self.flat_log_scale, step.by_log_scale)
            kl = self._write_scale(step)
        step.is_layerwise = True
        weights = step.weights_under(estimators, self.antithetic)
        chosen = {name: weights[name] if name in estimators else weights[name].shared for name in self.sites}
        unsuited = [name for name in estimators if not self.sites[name].is_real]
        return self.constrain(chosen | {name: weights[name].shared for name in unsuited}), kl

    def discard_counted(self) -> None:
        """Takes the flat KL of the last draw out of the coming :meth:`pull_back`: the model has other priors now."""
        if self._step is not None:
            self._step.prior = None

    def _write_scale(self, step: Step) -> Tensor | float:
        """Writes σ; the KL of the sites that ``flat_prior`` covers, read while the vectors are in the cache."""
        prior = step.prior = self.flat_prior  # the one whose KL is counted here, whatever the model shows later
        if prior is None:
            torch.exp(self.flat_log_scale, out=step.scale)
            return 0.0
        distance, entropy = prior.half_squares(self.flat_loc[: prior.size]), self.flat_log_scale[: prior.size].sum()
        scale = torch.exp(self.flat_log_scale, out=step.scale)[: prior.size]
        if isinstance(prior.precision, float):
            spread = scale.dot(scale) * (0.5 * prior.precision)
        else:
            spread = (scale * scale).dot(prior.precision) * 0.5
        return distance + spread - entropy + (prior.log_scale_sum - 0.5 * prior.size)

    def _pull_back_layers(self, step: Step, kl_weight: float) -> None:
        assert step.locs is not None
        by_loc, total, prior = step.locs.collect(), step.by_log_scale, step.prior
        size = 0 if prior is None else prior.size
        head, tail, scale = total[:size], total[size:], step.scale[:size]
        constant = total.new_tensor(-kl_weight)
        if step.has_variance:  # 2σ² (dL/dσ² + λp/2) - λ, in as few passes over memory as can be
            step.variances.collect()
            if prior is not None:
                head.add_(prior.precision, alpha=0.5 * kl_weight)
                torch.addcmul(constant, scale, head, value=2.0, out=head)
            tail.mul_(step.scale[size:]).mul_(2.0)
        else:  # λ (p σ² - 1)
            tail.zero_()
            if prior is not None and isinstance(prior.precision, float):
                torch.addcmul(constant, scale, scale, value=kl_weight * prior.precision, out=head)
            elif prior is not None:
                torch.addcmul(constant, scale, scale * prior.precision, value=kl_weight, out=head)
        for name, weight in step.weights.items():
            weight.add_gradient_by_log_scale(step.variances.slots[name])
        if prior is not None:
            prior.add_pull(by_loc[:size], self.flat_loc[:size], kl_weight)
        accumulate(self.flat_loc, by_loc)
        accumulate(self.flat_log_scale, total)

    def reset_noise(self) -> None:
        """Forgets what is left of an antithetic group, so that the random state alone fixes what follows."""
        if self._step is not None:
            self._step.turn = 0
