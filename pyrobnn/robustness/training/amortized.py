r"""ADT-EXP-AM: adversarial distributional training with distributions that a network proposes.

Instead of fitting a distribution to each input, a generator G with parameters :math:`\varphi` gives its parameters,

.. math::  (m, s) = G\big(x,\; \nabla_x L(x),\; \nabla_x L(x_{FGSM})\big), \qquad
           \min_\theta \max_\varphi \frac1n \sum_i E_{p(\delta \mid m_i, s_i)}[L(x_i + \delta)] + \lambda H(p),

with :class:`TanhNormal` perturbations. Both players move at once: the outer backward pass ends at the perturbed inputs,
and the generator takes the gradient that it left there with the other sign (a gradient reversal), so that a training
step needs one backward pass of the network for both, besides the two gradients that G is shown. The generator has an
optimizer of its own, that of a :class:`~pyrobnn.training.Player`. Dong, Deng, Pang, Zhu & Su (2020), whose generator is
:class:`PerturbationGenerator`. The gradients are shown divided by their mean absolute value, input by input.
"""

from __future__ import annotations

import functools
from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from pyrobnn.core.arguments import check_non_negative, check_positive
from pyrobnn.core.explanations import explained
from pyrobnn.core.gradient_modes import gradients_enabled
from pyrobnn.core.module_state import modes_restored
from pyrobnn.objectives import Objective, Parts, Term
from pyrobnn.objectives.parts import check_finite
from pyrobnn.robustness.attacks.balls import Clip
from pyrobnn.robustness.training.attacked import AttackedNetwork
from pyrobnn.robustness.training.explicit import EntropyUnit, check_entropy_unit, per_input
from pyrobnn.robustness.training.perturbation import Perturbation
from pyrobnn.robustness.training.tanh_normal import TanhNormal
from pyrobnn.training import Player

__all__ = ["AmortizedDistribution", "GeneratedPerturbation", "shown_to_generator"]


@dataclass
class _Move:
    """What a generator made for one draw: perturbed inputs and entropies in its graph, and where a gradient arrives."""

    inputs: Tensor
    entropies: Tensor
    leaf: Tensor
    loss: Tensor | None = None

    def linearized(self) -> Tensor:
        """The inputs times the gradient that arrived: a function of the networks with the gradient of the loss."""
        assert self.leaf.grad is not None
        return (self.leaf.grad * self.inputs).sum()


class GeneratedPerturbation(Perturbation):
    """Base class of perturbations by a generator; subclasses implement :meth:`proposed`.

    Args:
        networks: The networks that the player trains.
        epsilon: Radius of the ball in the maximum norm.
        clip: Smallest and largest input allowed; None for no limits.
        entropy_weight: Weight λ of the entropy, relative to the loss per datum.

    Raises:
        TypeError: If a network is none.
        ValueError: If a number is out of its range.
    """

    has_players: ClassVar[bool] = True

    def __init__(self, networks: dict[str, nn.Module], epsilon: float, clip: Clip, entropy_weight: float) -> None:
        check_positive("epsilon", epsilon, "radius")
        super().__init__(epsilon, clip)
        check_non_negative("entropy_weight", entropy_weight)
        for name, network in networks.items():
            if not isinstance(network, nn.Module):
                raise TypeError(f"{name}: expected a torch.nn.Module, got {network!r}.")
        self.networks = nn.ModuleDict(networks)
        self.entropy_weight = entropy_weight
        self._moves: list[_Move] = []

    def __getstate__(self) -> dict[str, Any]:
        """The state without the moves of a training step, which hold graphs."""
        return self.__dict__ | {"_moves": []}

    @abstractmethod
    def proposed(self, network: AttackedNetwork, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Perturbations of the shape of ``x``, and (bounds of) their entropies, a mean or one each; in the graph."""

    def perturbed(self, network: AttackedNetwork, x: Tensor, y: Tensor, *, keep: bool) -> Tensor:
        """The inputs, moved as the generator proposes; with ``keep`` a leaf at which the outer gradient arrives."""
        if not keep:
            with modes_restored(self.networks):
                self.networks.eval()
                return self.ball.clipped(x + self.proposed(network, x, y)[0]).detach()
        delta, entropies = self.proposed(network, x, y)
        moved = self.ball.clipped(x + delta)
        leaf = moved.detach().requires_grad_()
        self._moves.append(_Move(moved, entropies, leaf))
        return leaf

    def begin(self) -> None:
        """Forgets moves that no player has taken up."""
        self._moves.clear()

    def scored(self, log_likelihood: Tensor) -> None:
        """The loss at the last move, for ``history.terms``."""
        if self._moves and self._moves[-1].loss is None:
            self._moves[-1].loss = -log_likelihood

    def players(
        self, *, lr: float = 2e-4, betas: tuple[float, float] = (0.5, 0.999), name: str = "generator"
    ) -> list[Player]:
        """The player that trains the networks with Adam; pass it to ``fit(players=...)``.

        Args:
            lr: Learning rate.
            betas: Adam's betas.
            name: Its loss is ``"<name>.loss"`` in ``history.terms``: minus the loss at perturbed inputs and minus the
                weighted entropy, per datum.
        """
        self._made_players = True
        adam = functools.partial(torch.optim.Adam, betas=betas)
        return [Player(name, _Reversed(self), self.networks, adam, lr)]

    def take_moves(self) -> list[_Move]:
        """The moves since the outer objective was evaluated, with the gradients that arrived; they are forgotten.

        Raises:
            RuntimeError: If there are none, or no gradient has arrived.
        """
        moves, self._moves = self._moves, []
        if not moves or any(move.leaf.grad is None for move in moves):
            raise RuntimeError(
                f"players: the player of {type(self).__name__} learns from the outer backward pass, but there was none "
                "on this batch; pass elbo=AdversarialTraining(perturbation) of the same perturbation to fit."
            )
        return moves


class _Loss(Term):
    """Minus the log likelihood at perturbed inputs, which the player maximizes."""

    name = "adversarial_loss"

    def __call__(self, runs: Any, evaluation: Any) -> Tensor:
        """Never called: the value is that of the outer objective's evaluation."""
        raise NotImplementedError


class _Entropy(_Loss):
    """N times the mean entropy of an input's perturbation, which the player maximizes, too."""

    name = "entropy"


class _Reversed(Objective):
    """The player's objective: minus the outer loss, by the gradient that it left at the perturbed inputs."""

    def __init__(self, perturbation: GeneratedPerturbation) -> None:
        super().__init__([_Loss(-1.0), _Entropy(-perturbation.entropy_weight)])
        self.perturbation = perturbation

    def backward(self, model: Any, guide: Any, args: Any, kwargs: Any = None, scale: float | None = 1.0) -> Parts:
        """Adds the gradients of the player's parameters; ``scale`` is that of the outer backward pass, None in ``fit``.

        Raises:
            NonFiniteLossError: If the value is NaN or infinite.
            RuntimeError: If the outer objective was not differentiated on this batch.
        """
        size = model.num_data
        unit = size if scale is None else 1.0 / scale  # the gradient that arrived is that of the scaled outer loss
        with gradients_enabled():
            moves = self.perturbation.take_moves()
            losses = torch.stack([move.loss for move in moves if move.loss is not None])
            entropy = size * torch.stack([move.entropies.mean() for move in moves]).mean()
            # Shares of the draws are in the gradients that arrived; the loss was not computed in the players' graph.
            arrived = unit * torch.stack([move.linearized() for move in moves]).sum()
            values = {"adversarial_loss": losses.mean() + arrived - arrived.detach()}
            parts = Parts(values | {"entropy": entropy}, self.weights(), size, divergence_name="none")
            check_finite(parts)
            (parts.loss / unit).backward()
        self.num_steps += 1
        self.parts = parts.detached()
        return self.parts


def shown_to_generator(network: AttackedNetwork, x: Tensor, y: Tensor, perturbation: Perturbation) -> Tensor:
    """Inputs, their gradient and that at their FGSM example, joined along dimension 1, ``[B, 3C, ...]``."""
    slope = network.gradient(x, y)
    ball = perturbation.ball
    stepped = ball.project(x, x + perturbation.epsilon * ball.steepest(slope))
    return torch.cat([x, _scaled(slope), _scaled(network.gradient(stepped, y))], 1)


def _scaled(gradient: Tensor) -> Tensor:
    """Divided by the mean absolute value of each input's entries; 0 where all are 0."""
    size = gradient.abs().flatten(1).mean(1).reshape(-1, *[1] * (gradient.dim() - 1))
    return gradient / torch.where(size > 0, size, 1.0)


@explained
class AmortizedDistribution(GeneratedPerturbation):
    """Distributions over perturbations in the maximum norm that a generator proposes (ADT-EXP-AM).

    ::

        adversary = AmortizedDistribution(PerturbationGenerator(channels=1), epsilon=0.2, clip=(0.0, 1.0))
        fit(model, guide, loader, elbo=AdversarialTraining(adversary), players=adversary.players())

    A training step costs three forward and backward passes of the network and one of the generator.

    Args:
        generator: A network from ``[B, 3C, ...]`` (inputs, gradients, gradients at FGSM examples, along dimension 1) to
            ``[B, 2C, ...]`` (means m and raw scales s). It is trained in place; give it the device and dtype of the
            inputs.
        epsilon: Radius of the ball, in the inputs' units; positive.
        clip: Smallest and largest input allowed; None for no limits.
        entropy_weight: Weight λ of the entropy.
        entropy: Whether an input's entropy is the ``"sum"`` over its elements or their ``"mean"``, as for
            :class:`ExplicitDistribution`.

    Raises:
        TypeError: If ``generator`` is no module.
        ValueError: If another argument is out of its range; at the first step, if the generator returns another shape.
    """

    def __init__(
        self,
        generator: nn.Module,
        epsilon: float,
        *,
        clip: Clip = None,
        entropy_weight: float = 0.01,
        entropy: EntropyUnit = "mean",
    ) -> None:
        super().__init__({"generator": generator}, epsilon, clip, entropy_weight)
        check_entropy_unit(entropy)
        self.entropy = entropy

    def proposed(self, network: AttackedNetwork, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """One draw of the distributions."""
        found = self.networks["generator"](shown_to_generator(network, x, y, self))
        expected = (len(x), 2 * x.shape[1], *x.shape[2:])
        if found.shape != expected:
            raise ValueError(f"generator: it must return shape {expected}, means and scales, not {tuple(found.shape)}.")
        loc, raw_scale = found.chunk(2, 1)
        noise, distribution = torch.randn_like(x), TanhNormal(loc, raw_scale, self.epsilon)
        return distribution.rsample(noise), per_input(distribution.entropy_at(noise), self.entropy)
