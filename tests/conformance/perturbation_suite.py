"""What every perturbation of training against attacks must do: stay in its ball, and leave everything else alone."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pyrobnn.robustness.training import Perturbation
from pyrobnn.robustness.training.attacked import attacking
from tests.conformance.comparisons import assert_same, assert_same_state, network_state
from tests.robustness.training.problems import FAMILIES, problem

EPSILON = 0.3
CLIP = (0.0, 1.0)
each_family = pytest.mark.parametrize("family", FAMILIES)


class PerturbationConformance:
    """Inherit, and supply :meth:`make`; the problem has three inputs, of which dimension 1 is the only one."""

    def make(self, epsilon: float, clip: tuple[float, float] | None) -> Perturbation:
        """A new perturbation in double precision."""
        raise NotImplementedError

    def perturbed(self, family: str = "MAP", *, clip: Any = CLIP, seed: int = 0) -> tuple[Tensor, Tensor]:
        """Inputs and perturbed inputs."""
        model, guide, (x, y) = problem(family)
        torch.manual_seed(seed)
        with attacking(model, guide.rsample()) as network:
            return x, self.make(EPSILON, clip)(network, x, y)

    @each_family
    def test_inputs_stay_in_ball_and_range(self, family: str) -> None:
        x, moved = self.perturbed(family)
        assert moved.shape == x.shape and moved.dtype == x.dtype and not moved.requires_grad
        assert 0.0 < float((moved - x).abs().max()) <= EPSILON * (1 + 1e-12)
        assert float(moved.min()) >= 0.0 and float(moved.max()) <= 1.0

    def test_without_a_range_the_ball_alone_counts(self) -> None:
        x, moved = self.perturbed(clip=None)
        assert float((moved - x).abs().max()) <= EPSILON * (1 + 1e-12)

    @each_family
    def test_the_random_state_alone_decides(self, family: str) -> None:
        first, again = self.perturbed(family)[1], self.perturbed(family)[1]
        assert torch.equal(first, again)

    @each_family
    def test_everything_else_stays(self, family: str) -> None:
        """Inputs, parameters, running statistics, modes; and no gradient is left anywhere."""
        model, guide, (x, y) = problem(family)
        model.train()
        player = self.make(EPSILON, CLIP)
        before, inputs, state = network_state(model), x.clone(), copy.deepcopy(guide.state_dict())
        draw = guide.rsample()
        buffers = {name: value.clone() for name, value in draw.buffers.items()}
        with attacking(model, draw) as network:
            player(network, x, y)
        assert_same_state(network_state(model), before)
        assert_same(guide.state_dict(), state)
        assert_same(draw.buffers, buffers)
        assert torch.equal(x, inputs)
        assert all(p.grad is None for p in nn.ModuleList([model, guide]).parameters())

    def test_gradients_off_outside(self) -> None:
        """The inner player differentiates in any mode around it."""
        with torch.no_grad():
            found = self.perturbed()[1]
        assert torch.equal(found, self.perturbed()[1])

    def test_inputs_beyond_the_range_are_refused(self) -> None:
        model, guide, (x, y) = problem()
        with attacking(model, guide.rsample()) as network, pytest.raises(ValueError, match=r"^x: inputs reach from"):
            self.make(EPSILON, CLIP)(network, x + 1.0, y)

    @pytest.mark.parametrize("epsilon", [-0.1, float("inf"), float("nan"), True])
    def test_a_radius_that_is_none_is_refused(self, epsilon: float) -> None:
        with pytest.raises(ValueError, match=r"^epsilon: "):
            self.make(epsilon, CLIP)

    def test_a_range_that_is_none_is_refused(self) -> None:
        for clip in ((1.0, 0.0), (0.5, 0.5), (0.0,)):
            with pytest.raises(ValueError, match=r"^clip: "):
                self.make(EPSILON, clip)  # type: ignore[arg-type]
