r"""A heteroscedastic network whose mean and variance interact through a stochastic differential equation.

.. math::  h_0 = e(x), \qquad dh = f(t, h)\, dt + g(t, h) \circ dW, \qquad
           p(y \mid x) = \frac1R \sum_{r=1}^R N\big(y;\; a(h_T^r),\; \sigma(h_T^r, \bar g^r)^2\big),
           \quad \bar g = \Big(\sum g^2 \Delta\Big)^{1/2},

the sum over R paths of the noise. Drift carries the mean and diffusion the variance: g says how far paths of an input
part, and the scale also sees the noise :math:`\bar g` that its path has taken up. What paths differ in is noise of the
data and therefore aleatoric; the weights are sites of the posterior, whose draws differ by the epistemic part.

After Cui, Deng, Hu & Zhu, *Accurate and Reliable Forecasting using Stochastic Differential Equations* (2021), of which
only what its abstract says was at hand. These choices are ours, and arguments: fields are perceptrons of one hidden
layer with bounded values, so that a solution exists and is unique; Euler–Maruyama; paths in antithetic pairs (W, -W)
for the enhanced solver, which takes the noise of first order out of the mean; the mixture over paths, not its moments,
as likelihood; the scale's view of :math:`\bar g`; a warm-up in which the noise rises; in prediction the same paths for
all inputs, so that predictions are functions of the input and may be cut by rows.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import pyrobnn as pb
from pyrobnn.core.arguments import check_int, check_number, check_positive, check_positive_int
from pyrobnn.layers.sde import Scheme, brownian_increments, solve_sde

__all__ = ["PathMixture", "SDENetwork", "sde_hnn"]


def sde_hnn(
    num_data: int,
    *,
    inputs: int,
    targets: int = 1,
    floor: float = 1e-3,
    prior: pb.priors.PriorSpec | None = None,
    **options: Any,
) -> pb.SupervisedModel:
    """The model; pair it with any guide: ``pb.guides.MAP(model)``, ``MeanField``, an ensemble ``DeltaMixture``.

    A field's weights are used at each time step, for which an estimator must have one draw: the shared draw (the
    default) or ``"flipout"``, one weight for each path; the objective refuses those that draw a layer's outputs.

    Args:
        num_data: Number of training data.
        inputs: Features of an input.
        targets: Number D of targets.
        floor: Smallest standard deviation of a path.
        prior: Prior of the weights; the default prior if None.
        **options: Further options of :class:`SDENetwork`.
    """
    net = SDENetwork(inputs, targets, **options)
    return pb.SupervisedModel(net, PathMixture(targets, floor), prior, num_data=num_data)


class SDENetwork(nn.Module):
    """Encoder, drift, diffusion, and layers for mean and scale at the end of each path.

    Args:
        inputs: Features of an input.
        targets: Number D of targets.
        hidden: Dimension of the state, and width of all hidden layers.
        steps: Time steps of the solver.
        duration: The time T.
        paths: Number R of paths in training, drawn for each row and call.
        prediction_paths: Their number in evaluation.
        method: ``"euler"`` or ``"milstein"``. The diffusion mixes components, so both are of strong order 1/2 here.
        antithetic: Pairs of mirrored paths, the enhanced solver; independent paths otherwise.
        max_drift: Bound of the drift's components.
        max_diffusion: Bound of the diffusion's; 0 leaves the noise out.
        sees_variation: Whether the scale sees the noise that its path has taken up.
        noise_warmup: Number of first calls in training in which the noise rises from 0 to its size.
        encoder: A module from inputs to the first state ``[B, hidden]``, which is copied with the network; a perceptron
            of one hidden layer if None.
        fixed_noise: Whether evaluation uses one fixed set of paths for all inputs; otherwise they are drawn anew for
            each row and call, and predictions are not repeated by a seed alone.

    Raises:
        ValueError: If an option is out of range.
    """

    increments: Tensor
    calls: Tensor

    def __init__(
        self,
        inputs: int,
        targets: int = 1,
        *,
        hidden: int = 50,
        steps: int = 8,
        duration: float = 1.0,
        paths: int = 6,
        prediction_paths: int = 50,
        method: Scheme = "euler",
        antithetic: bool = True,
        max_drift: float = 3.0,
        max_diffusion: float = 1.0,
        sees_variation: bool = True,
        noise_warmup: int = 0,
        encoder: nn.Module | None = None,
        fixed_noise: bool = True,
    ) -> None:
        super().__init__()
        sizes = {"inputs": inputs, "targets": targets, "hidden": hidden, "steps": steps}
        for name, size in (sizes | {"paths": paths, "prediction_paths": prediction_paths}).items():
            check_positive_int(name, size)
        check_positive("duration", duration, "time")
        check_positive("max_drift", max_drift)
        check_number("max_diffusion", max_diffusion, 0.0, 1e6)
        check_int("noise_warmup", noise_warmup, 0)
        if method not in ("euler", "milstein"):
            raise ValueError(f"method: expected 'euler' or 'milstein', got {method!r}.")
        self.targets, self.hidden, self.steps, self.duration = targets, hidden, steps, float(duration)
        self.paths, self.prediction_paths = paths, prediction_paths
        self.method, self.antithetic, self.sees_variation = method, antithetic, sees_variation
        self.max_drift, self.max_diffusion = float(max_drift), float(max_diffusion)
        self.noise_warmup, self.fixed_noise = noise_warmup, fixed_noise

        if encoder is None:
            encoder = nn.Sequential(nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, hidden))
        self.encoder = encoder
        self.drift = _Field(hidden)
        self.diffusion = _Field(hidden)
        nn.init.constant_(self.diffusion.end.bias, -2.0)  # little noise at first, so that means are found
        self.mean = nn.Linear(hidden, targets)
        self.scale = nn.Linear(2 * hidden if sees_variation else hidden, targets)
        shape = (prediction_paths, 1, hidden)
        generator = torch.Generator().manual_seed(0)
        fixed = brownian_increments(steps, shape, duration=duration, antithetic=antithetic, generator=generator)
        self.register_buffer("increments", fixed)
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def forward(self, x: Tensor) -> Tensor:
        """Outputs ``[B, R · 2 D]``: for each path D means, then D raw scales; of inputs ``[B, inputs]``."""
        encoded = self.encoder(x)
        if encoded.shape != (len(x), self.hidden):
            shape = (len(x), self.hidden)
            raise ValueError(f"encoder: expected it to return states of shape {shape}, got {tuple(encoded.shape)}.")
        paths = self.paths if self.training else self.prediction_paths
        start = encoded.expand(paths, *encoded.shape)
        fixed = self.increments.expand(-1, -1, len(x), -1) if self.fixed_noise and not self.training else None
        solution = solve_sde(
            lambda t, h: self.max_drift * self.drift(t, h).tanh(),
            self._diffusion_now() if self.max_diffusion else None,
            start,
            self.steps,
            duration=self.duration,
            method=self.method,
            increments=fixed,
            antithetic=self.antithetic and fixed is None,
        )
        state = seen = solution.state
        if self.sees_variation:  # a root without an infinite slope at 0, where there is no noise
            seen = torch.cat([state, (solution.variation + 1e-12).sqrt()], -1)
        ends = torch.cat([self.mean(state), self.scale(seen)], -1)  # [R, B, 2 D]
        return ends.movedim(0, 1).flatten(1)

    def _diffusion_now(self) -> Any:
        size: Tensor | float = self.max_diffusion
        if self.training and self.noise_warmup:
            self.calls += 1
            size = size * (self.calls / self.noise_warmup).clamp(max=1.0)
        return lambda t, h: size * self.diffusion(t, h).sigmoid()


class _Field(nn.Module):
    """A perceptron of time and state, before what bounds it."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.state = nn.Linear(hidden, hidden)
        self.time = nn.Linear(1, hidden, bias=False)
        self.end = nn.Linear(hidden, hidden)

    def forward(self, time: float, h: Tensor) -> Tensor:
        """Values of the shape of the state."""
        return self.end((self.state(h) + self.time(h.new_full((1,), time))).tanh())


class PathMixture(pb.likelihoods.MixtureDensity):
    r"""Gaussians of equal shares: outputs ``[B, R · 2 D]`` are D means and D raw scales of each of R paths.

    It is a :class:`~pyrobnn.likelihoods.MixtureDensity` without logits, of as many components as there are: R may
    differ between training and prediction.

    Args:
        targets: Number D of targets.
        floor: Smallest standard deviation of a path.
        missing: Whether targets may be NaN (not observed).

    Raises:
        ValueError: If ``targets`` is no positive int, or ``floor`` negative.
    """

    def __init__(self, targets: int = 1, floor: float = 1e-3, *, missing: bool = False) -> None:
        super().__init__(1, floor, missing=missing)
        check_positive_int("targets", targets)
        self.targets = targets

    def parameters_of(self, outputs: Tensor) -> dict[str, Tensor]:
        """``logits [B, R, 1]`` of 0, ``loc`` and ``scale [B, R, D]``."""
        self.target_shape(outputs)
        loc, raw = outputs.unflatten(-1, (-1, 2, self.targets)).unbind(-2)
        return {"logits": torch.zeros_like(loc[..., :1]), "loc": loc, "scale": F.softplus(raw) + self.floor}

    def target_shape(self, outputs: Tensor) -> torch.Size:
        """``[B, D]``.

        Raises:
            ValueError: If the outputs are not those of whole paths.
        """
        if outputs.dim() != 2 or not outputs.shape[1] or outputs.shape[1] % (2 * self.targets):
            raise ValueError(
                f"net: PathMixture({self.targets}) expects outputs [B, R * {2 * self.targets}], means and raw scales "
                f"of each path, got shape {tuple(outputs.shape)}; change the last layer, or targets."
            )
        return torch.Size((len(outputs), self.targets))

    def config(self) -> dict[str, Any]:
        """Constructor arguments."""
        return {"targets": self.targets, "floor": self.floor, "missing": self.missing}
