r"""Feature scattering: a batch is moved away from itself in feature space, without looking at labels.

.. math::  \max_{x'} \min_{T} \sum_{ij} T_{ij}\, c\big(\phi(x_i), \phi(x'_j)\big), \qquad
           c(a, b) = 1 - \cos(a, b),

the optimal transport distance between the features of the clean and of the perturbed batch, for one step from a random
start; the network is then trained on the perturbed inputs with smoothed labels. The rows of a batch are perturbed
together. The gradient is taken with the transport plan T held fixed (:func:`transport_plan`), which is that of the
entropic distance by the envelope theorem. Zhang & Wang, *Defense against Adversarial Attacks Using Feature
Scattering-based Adversarial Training* (2019); its features are the network's outputs.

It resists attacks by gradients of the cross entropy; attacks in feature space got through (Dong et al. 2020).
"""

from __future__ import annotations

from torch import Tensor

from pyrobnn.core.arguments import check_number, check_positive, check_positive_int
from pyrobnn.core.explanations import explained
from pyrobnn.robustness.attacks.balls import Clip, Norm
from pyrobnn.robustness.training.attacked import AttackedNetwork
from pyrobnn.robustness.training.gradient_steps import ascended
from pyrobnn.robustness.training.perturbation import Perturbation
from pyrobnn.robustness.training.sinkhorn import cosine_costs, transport_plan

__all__ = ["FeatureScattering"]


@explained
class FeatureScattering(Perturbation):
    """Moves a batch away from itself in feature space, by optimal transport.

    Args:
        epsilon: Radius of the ball, in the inputs' units.
        norm: ``"linf"`` or ``"l2"``.
        clip: Smallest and largest input allowed; None for no limits.
        layer: Name of the network's module whose output is the features; None for the network's outputs.
        steps: Number of steps.
        step_size: Length of a step; None for the radius.
        regularization: Weight γ of the plan's entropy, in units of the cost, which is from 0 to 2.
        iterations: Sinkhorn's iterations.
        label_smoothing: Share of the label that the loss gives to the other classes, in equal parts; 0 for none.

    Raises:
        ValueError: If an argument is out of its range; at the first step, if there is no such layer.
        TypeError: At the first step, if labels are smoothed and the model has no likelihood of classes.
    """

    def __init__(
        self,
        epsilon: float,
        *,
        norm: Norm = "linf",
        clip: Clip = None,
        layer: str | None = None,
        steps: int = 1,
        step_size: float | None = None,
        regularization: float = 0.01,
        iterations: int = 100,
        label_smoothing: float = 0.5,
    ) -> None:
        super().__init__(epsilon, clip, norm)
        check_positive_int("steps", steps)
        check_positive_int("iterations", iterations)
        check_positive("regularization", regularization)
        check_number("label_smoothing", label_smoothing, 0.0, 1.0, below=True)
        if step_size is not None:
            check_positive("step_size", step_size)
        if layer is not None and not isinstance(layer, str):
            raise TypeError(f"layer: expected the name of a module of the network or None, got {layer!r}.")
        self.layer, self.steps, self.step_size = layer, steps, epsilon if step_size is None else step_size
        self.regularization, self.iterations, self.label_smoothing = regularization, iterations, label_smoothing

    def perturbed(self, network: AttackedNetwork, x: Tensor, y: Tensor, *, keep: bool) -> Tensor:
        """The batch after its steps."""
        clean = network.features(x, self.layer).detach()

        def distance(moved: Tensor) -> Tensor:
            costs = cosine_costs(clean, network.features(moved, self.layer))
            return transport_plan(costs, self.regularization, self.iterations) * costs

        return ascended(distance, x, self.ball.random_start(x), self.ball, self.steps, self.step_size)
