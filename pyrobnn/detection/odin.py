r"""ODIN: a softmax at high temperature, after a step that makes each input more typical of its predicted class.

.. math::  \tilde x = x + \epsilon\, \mathrm{sign}\, \nabla_x \log \bar p_T(\hat y \mid x), \qquad
           \text{score} = -\max_c \bar p_T(c \mid \tilde x), \qquad
           \bar p_T(c \mid x) = \frac1K \sum_k \mathrm{softmax}_c\big(f_k(x) / T\big),

with K pinned posterior draws, the mean of *probabilities*, and :math:`\hat y` the most probable class at x. The step is
in units of pixels: where inputs were divided by a standard deviation after loading, it is divided by it, too. T and
:math:`\epsilon` are tuned on outliers that are named, and are then no test of it.

Liang, Li & Srikant, "Enhancing the reliability of out-of-distribution image detection in neural networks", 2018.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn

from pyrobnn.core.arguments import check_int, check_non_negative, check_positive, check_positive_int
from pyrobnn.core.batches import Reader
from pyrobnn.core.explanations import explained
from pyrobnn.core.fitted import Fitted
from pyrobnn.core.gradient_modes import gradients_enabled, ordinary
from pyrobnn.detection.input_sets import named_sets, tensors_of
from pyrobnn.detection.output_scores import max_softmax
from pyrobnn.metrics.detection import auroc
from pyrobnn.model.declarations import declared_likelihood
from pyrobnn.model.likelihoods import ClassLikelihood, Likelihood
from pyrobnn.model.likelihoods.reductions import widened
from pyrobnn.prediction.draws import PinnedDraws, check_posterior
from pyrobnn.prediction.input_gradients import mixture_gradient
from pyrobnn.prediction.runners import Runner, inputs_on

__all__ = ["ODIN"]


@explained
class ODIN(Fitted):
    """Minus the largest mean probability at a temperature, after a step along the sign of its gradient.

    ::

        odin = ODIN(model, guide).tune(validation, {"Fashion": fashion})
        scores = odin(x)  # [N]

    Args:
        model: A model with a likelihood of classes whose inputs are one tensor ``[N, ...]``; its rows must not see each
            other.
        guide: The posterior: a guide, or draws ``{site: [K, *site shape]}``.
        temperature: T.
        epsilon: Length of the step, in pixels' units.
        num_samples: Number K of draws.
        pixel_std: What pixels were divided by before they came here: a number, or one for each channel. 1 where the
            network itself normalizes, or nothing does.
        clip: Smallest and largest input allowed after the step; None: any.
        batch: How to read what a loader yields, as for :func:`pyrobnn.predict`.
        batch_size: Rows at a time, of inputs that are one tensor.
        likelihood: What the outputs mean; the model's own if None.
        max_bytes: Budget for draws.
        seed: Fixes the draws.

    Attributes:
        temperature: T, 0-d.
        epsilon: The step, 0-d.
        tuned_on: Names of the outliers that it was tuned on.
        grid: After :meth:`tune`, the mean AUROC by ``(temperature, epsilon)``.

    Raises:
        TypeError: If the posterior or the likelihood is of the wrong kind.
        ValueError: If a number is out of its range.
    """

    name = "odin"
    needs_training = False
    temperature: Tensor
    epsilon: Tensor

    def __init__(
        self,
        model: nn.Module,
        guide: Any,
        temperature: float = 1000.0,
        epsilon: float = 0.0014,
        *,
        num_samples: int = 20,
        pixel_std: float | Sequence[float] = 1.0,
        clip: tuple[float, float] | None = None,
        batch: Reader | None = None,
        batch_size: int = 256,
        likelihood: Likelihood | None = None,
        max_bytes: int = 256 * 2**20,
        seed: int = 0,
    ) -> None:
        super().__init__("temperature", "epsilon")
        check_positive("temperature", temperature)
        check_non_negative("epsilon", epsilon)
        check_positive_int("batch_size", batch_size)
        check_positive_int("max_bytes", max_bytes)
        check_int("seed", seed, 0)
        if clip is not None and not (len(clip) == 2 and clip[0] < clip[1]):
            raise ValueError(f"clip: expected (smallest, largest), got {clip!r}.")
        stds = list(pixel_std) if isinstance(pixel_std, Sequence) else [pixel_std]
        if not stds:
            raise ValueError("pixel_std: expected a number, or one for each channel.")
        for std in stds:
            check_positive("pixel_std", std)
        own = likelihood if likelihood is not None else declared_likelihood(model)
        if not isinstance(own, ClassLikelihood):
            kind = "none" if own is None else type(own).__name__
            raise TypeError(f"likelihood: ODIN needs a likelihood of classes, such as Categorical, got {kind}.")
        check_posterior(model, guide)
        self._network = (model, own)  # in a tuple, since neither is saved with the detector
        self._runner = Runner(model, own, "loop", max_bytes)
        self._draws = PinnedDraws(guide, num_samples, max_bytes // 2, seed=seed)
        self.clip, self.batch, self.batch_size, self.pixel_std = clip, batch, batch_size, tuple(stds)
        self.tuned_on: tuple[str, ...] = ()
        self.grid: dict[tuple[float, float], float] = {}
        self._set(temperature, epsilon)

    @explained
    def forward(self, data: Any) -> Tensor:
        """The score of each input, ``[N]``.

        Args:
            data: A tensor of inputs, or a loader.

        Raises:
            TypeError: If inputs are no tensors of floating-point numbers.
            ValueError: If there are none, or a gradient is not finite.
        """
        temperature, epsilon = float(self.temperature), float(self.epsilon)
        found = [
            self._score(self._moved(x, self.direction(x, temperature) if epsilon else None, epsilon), temperature)
            for x in self._inputs(data)
        ]
        if not found:
            raise ValueError("data: it holds no inputs.")
        return torch.cat(found)

    @explained
    def tune(
        self,
        in_: Any,
        out: Mapping[str, Any],
        *,
        temperatures: Sequence[float] = (1.0, 2.0, 5.0, 10.0, 100.0, 1000.0),
        epsilons: Sequence[float] = (0.0, 0.0005, 0.001, 0.0014, 0.002, 0.0024, 0.003, 0.004),
    ) -> Self:
        """Takes the temperature and step of the largest mean AUROC over validation outliers.

        Args:
            in_: Validation inputs, which are neither trained nor tested on.
            out: Outliers by name. :func:`~pyrobnn.detection.evaluate` does not test on sets of these names.
            temperatures: Temperatures that are tried.
            epsilons: Steps that are tried.

        Returns:
            The detector; among equals the first of the grid is taken.

        Raises:
            TypeError: If ``out`` is no mapping of names to inputs, or inputs are no floating-point tensors.
            ValueError: If a set is empty or of another shape, or a number is out of its range.
        """
        for name, values, check in (
            ("temperatures", temperatures, check_positive),
            ("epsilons", epsilons, check_non_negative),
        ):
            if not isinstance(values, Sequence) or isinstance(values, str) or not values:
                raise ValueError(f"{name}: expected a list of numbers, got {values!r}.")
            for value in values:
                check(name, value)
        sets = named_sets(in_, out)
        known = list(self._inputs(sets.in_))
        unknown = {name: list(self._inputs(data)) for name, data in sets.out.items()}
        sets.check(known, unknown)
        grid: dict[tuple[float, float], float] = {}
        for temperature in temperatures:
            by_set = [self._grid(batches, temperature, epsilons) for batches in (known, *unknown.values())]
            for index, epsilon in enumerate(epsilons):
                values = [auroc(by_set[0][index], other[index]) for other in by_set[1:]]
                grid[float(temperature), float(epsilon)] = sum(values) / len(values)
        best = max(grid, key=lambda point: grid[point])
        self.grid, self.tuned_on = grid, tuple(unknown)
        self._set(*best, num_data=sum(map(len, known)))
        return self

    def direction(self, x: Tensor, temperature: float) -> Tensor:
        """The sign of the gradient of the log probability of the predicted class, of the shape of ``x``."""
        model, likelihood = self._network
        label = self._mean(x, temperature).argmax(-1, keepdim=True)

        def log_prob(outputs: Tensor) -> Tensor:
            logits = likelihood.logits(widened(outputs)).double() / temperature
            return logits.log_softmax(-1).gather(-1, label).squeeze(-1)

        with gradients_enabled(), self._runner.ready():
            return mixture_gradient(model, self._draws, ordinary(x), log_prob).sign()

    def get_extra_state(self) -> dict[str, Any]:
        """The names of the outliers that it was tuned on."""
        return {"tuned_on": list(self.tuned_on)}

    def set_extra_state(self, state: Any) -> None:
        """Sets them."""
        self.tuned_on = tuple(state["tuned_on"])

    def extra_repr(self) -> str:
        """The temperature, the step, and what it was tuned on."""
        return f"temperature={float(self.temperature):g}, epsilon={float(self.epsilon):g}, tuned_on={self.tuned_on}"

    def _set(self, temperature: float, epsilon: float, num_data: int = 0) -> None:
        values = {"temperature": temperature, "epsilon": epsilon}
        self.store(num_data, **{name: torch.tensor(float(v), dtype=torch.float64) for name, v in values.items()})

    def _grid(self, batches: list[Tensor], temperature: float, epsilons: Sequence[float]) -> list[Tensor]:
        """The scores of a set for each step; the direction does not depend on it."""
        columns: list[list[Tensor]] = [[] for _ in epsilons]
        for x in batches:
            direction = self.direction(x, temperature) if any(epsilons) else None
            for column, epsilon in zip(columns, epsilons, strict=True):
                column.append(self._score(self._moved(x, direction, epsilon), temperature))
        return [torch.cat(column) for column in columns]

    def _inputs(self, data: Any) -> Iterator[Tensor]:
        for x in tensors_of(data, self.batch, self.batch_size):
            yield inputs_on(x, self._runner.device)

    def _moved(self, x: Tensor, direction: Tensor | None, epsilon: float) -> Tensor:
        if direction is None or not epsilon:
            return x
        std = x.new_tensor(self.pixel_std)
        if len(std) > 1:
            if x.dim() < 2 or x.shape[1] != len(std):
                raise ValueError(f"pixel_std: {len(std)} channels, but inputs have shape {tuple(x.shape)}.")
            std = std.reshape(-1, *[1] * (x.dim() - 2))
        moved = x + epsilon / std * direction
        return moved if self.clip is None else moved.clamp(*self.clip)

    @torch.no_grad()
    def _mean(self, x: Tensor, temperature: float) -> Tensor:
        """Log mean probabilities at a temperature, up to a constant, in double precision ``[N, C]``."""
        (_, likelihood), runner = self._network, self._runner
        total: Tensor | None = None
        with runner.ready():
            for chunk in self._draws:
                for summary in runner.summaries(chunk, x, lambda s: {"logits": likelihood.logits(widened(s))}):
                    if summary["logits"].dim() != 3:
                        raise ValueError("model: ODIN scores inputs with one label each.")
                    found = (summary["logits"].double() / temperature).log_softmax(-1).logsumexp(0)
                    total = found if total is None else torch.logaddexp(total, found)
        assert total is not None
        return total

    def _score(self, x: Tensor, temperature: float) -> Tensor:
        return max_softmax(self._mean(x, temperature))
