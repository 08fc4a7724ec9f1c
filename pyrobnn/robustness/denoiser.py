r"""Denoising defence: a network in front of the classifier that is to remove perturbations.

A U-Net D adds a correction to the input. It is trained on inputs that are perturbed on the fly against the classifier,
which stays as it is,

.. math::  \min_D E\, \| \phi(D(x')) - \phi(x) \|_1 \quad \text{(feature-guided)}, \qquad
           \min_D E\, \| D(x') - x \|_1 \quad \text{(pixels)},

with features :math:`\phi` of a layer of the classifier under a draw of its weights. Liao, Liang, Dong, Pang, Hu & Zhu,
*Defense against Adversarial Attacks Using High-Level Representation Guided Denoiser* (2018).

**Such a defence is not robust.** It may undo attacks on the bare classifier ("grey box": the attacker does not know of
the denoiser). An attacker who differentiates through the denoiser ("white box") gets through (Athalye & Carlini 2018).
:func:`denoiser_report` gives both, always; quote the white-box number.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from pyro.nn import PyroModule
from torch import Tensor, nn

from pyrobnn.core import random_state
from pyrobnn.core.arguments import check_positive, check_positive_int
from pyrobnn.core.batches import Batch
from pyrobnn.core.explanations import explained
from pyrobnn.core.gradient_modes import gradients_enabled
from pyrobnn.core.module_state import modes_restored
from pyrobnn.guides.base import Guide
from pyrobnn.layers.unet import UNet
from pyrobnn.metrics import wilson_interval
from pyrobnn.model.draws import Draws
from pyrobnn.model.supervised import SupervisedModel, run_network, select_output
from pyrobnn.prediction import predict
from pyrobnn.robustness.training.attacked import attacking, tensor_inputs
from pyrobnn.robustness.training.perturbation import Perturbation

__all__ = ["DenoisedModel", "Denoiser", "DenoiserReport", "denoiser_report", "fit_denoiser"]

AttackFunction = Callable[..., Tensor]
"""``attack(model, guide, x, y, num_samples=, seed=)``, adversarial inputs of the shape of ``x``."""


@explained
class Denoiser(nn.Module):
    """``x + network(x)``, not cut to a range, which would hide gradients from training and from attacks.

    Args:
        network: From inputs to a correction of their shape, such as ``UNet(1, 1)``.

    Raises:
        TypeError: If ``network`` is no module.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        if not isinstance(network, nn.Module):
            raise TypeError(f"network: expected a torch.nn.Module, got {network!r}.")
        self.network = network

    @classmethod
    def unet(cls, channels: int, *, width: int = 16, levels: int = 2) -> Denoiser:
        """With a small U-Net (:class:`~pyrobnn.layers.unet.UNet`), which begins with no correction.

        Args:
            channels: Channels of an image.
            width: Channels at full resolution; they double with each level.
            levels: How often the resolution is halved.
        """
        network = UNet(channels, channels, width=width, levels=levels)
        for parameter in network.head.parameters():
            nn.init.zeros_(parameter)
        return cls(network)

    def forward(self, x: Tensor) -> Tensor:
        """Inputs without what is taken for a perturbation, of the shape of ``x``."""
        return x + self.network(x)


class DenoisedModel(PyroModule):
    """A model with a denoiser in front: predict and attack it with the guide of the model itself.

    ::

        behind = DenoisedModel(model, denoiser)
        prediction = predict(behind, guide, x)
        white_box = attack(behind, guide, x, y)

    Args:
        model: The model; its network and likelihood are shared, not copied.
        denoiser: The denoiser, or any module from inputs to inputs.

    Raises:
        TypeError: If the model is no ``SupervisedModel``.
    """

    def __init__(self, model: SupervisedModel, denoiser: nn.Module) -> None:
        super().__init__()
        if not isinstance(model, SupervisedModel):
            raise TypeError(f"model: expected a SupervisedModel, got {type(model).__name__}.")
        self.net, self.likelihood, self.denoiser = model.net, model.likelihood, denoiser
        self._output = (model.output,)  # in a tuple, so that a function that is a module is no submodule

    def forward(self, x: Tensor) -> Tensor:
        """The network's outputs at denoised inputs."""
        return select_output(run_network(self.net, self.denoiser(x)), self._output[0])


@explained
def fit_denoiser(
    denoiser: nn.Module,
    model: SupervisedModel,
    guide: Guide,
    loader: Iterable[Any],
    perturbation: Perturbation,
    *,
    loss: Literal["features", "pixels"] = "features",
    layer: str | None = None,
    epochs: int = 5,
    lr: float = 1e-3,
    seed: int | None = None,
) -> list[float]:
    """Trains a denoiser; model and guide stay as they are.

    Each batch is perturbed against the classifier under one draw of the guide, the same that the features are of.

    Args:
        denoiser: The network to train, in place.
        model: The classifier.
        guide: Its posterior.
        loader: Batches ``(x, y)``.
        perturbation: How inputs are perturbed, such as ``training.ProjectedGradient(0.1)``.
        loss: ``"features"``: the mean absolute difference of features, ``"pixels"``: that of inputs.
        layer: Name of the network's module whose output is the features; None for the network's outputs.
        epochs: Passes over the data.
        lr: Learning rate of Adam.
        seed: Seeds torch for this call, whose random state is restored afterwards; None leaves it.

    Returns:
        The mean loss of each epoch.

    Raises:
        TypeError: If an argument is of the wrong kind, or inputs are no tensor.
        ValueError: If another is out of its range, the perturbation has players, or the denoiser changes shapes.
    """
    if loss not in ("features", "pixels"):
        raise ValueError(f"loss: expected 'features' or 'pixels', got {loss!r}.")
    check_positive_int("epochs", epochs)
    check_positive("lr", lr, "learning rate")
    if not isinstance(perturbation, Perturbation) or perturbation.has_players:
        raise TypeError(
            "perturbation: expected one of pyrobnn.robustness.training without networks of its own, such as "
            f"ProjectedGradient(0.1), got {perturbation!r}."
        )
    optimizer = torch.optim.Adam(denoiser.parameters(), lr=lr)
    history = []
    with gradients_enabled(), random_state.local(seed), modes_restored(denoiser):
        denoiser.train()
        for _ in range(epochs):
            total, rows = 0.0, 0
            for raw in loader:
                batch = Batch.read(raw, next(denoiser.parameters()).device)
                x, y = tensor_inputs(batch.args)
                with attacking(model, Draws.of(guide.rsample())) as network:
                    moved = perturbation(network, x, y)
                    cleaned = denoiser(moved)
                    if cleaned.shape != x.shape:
                        raise ValueError(f"denoiser: it made shape {list(cleaned.shape)} of inputs {list(x.shape)}.")
                    if loss == "pixels":
                        value = (cleaned - x).abs().mean()
                    else:
                        known = network.features(x, layer).detach()
                        value = (network.features(cleaned, layer) - known).abs().mean()
                    parameters = list(denoiser.parameters())
                    slopes = torch.autograd.grad(value, parameters)
                for parameter, slope in zip(parameters, slopes, strict=True):
                    parameter.grad = slope
                optimizer.step()
                total, rows = total + len(x) * float(value.detach()), rows + len(x)
            if not rows:
                raise ValueError("loader: it yielded no batch.")
            history.append(total / rows)
    return history


@dataclass(frozen=True)
class DenoiserReport:
    """Accuracies with and without a denoiser; print it.

    Attributes:
        accuracies: Of ``"clean"``, ``"clean, denoised"``, ``"attacked"``, ``"grey box"`` (attacked without the
            denoiser, then denoised) and ``"white box"`` (attacked through the denoiser).
        intervals: Their 95 % Wilson intervals.
        num_data: Number of inputs.
    """

    accuracies: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    num_data: int

    def __str__(self) -> str:
        lines = [f"{'inputs':<16} accuracy  95 % interval   ({self.num_data} inputs)"]
        for name, value in self.accuracies.items():
            low, high = self.intervals[name]
            lines.append(f"{name:<16} {100 * value:7.2f}   {100 * low:.2f} to {100 * high:.2f}")
        lines.append("The white-box row is what the defence is worth: attackers may know the denoiser.")
        return "\n".join(lines)


@explained
def denoiser_report(
    model: SupervisedModel,
    guide: Any,
    denoiser: nn.Module,
    x: Tensor,
    y: Tensor,
    attack: AttackFunction,
    *,
    num_samples: int = 10,
    seed: int = 0,
) -> DenoiserReport:
    """What a denoiser is worth: grey-box and white-box accuracy, side by side.

    Args:
        model: The classifier, with a likelihood of classes.
        guide: Its posterior.
        denoiser: The denoiser.
        x: Test inputs ``[N, ...]``.
        y: Their labels ``[N]``.
        attack: An attack such as :class:`~pyrobnn.robustness.PGD`, called as
            ``attack(model, guide, x, y, num_samples=, seed=)`` without and with the denoiser.
        num_samples: Number of draws that are attacked and that predict.
        seed: Of attacks and predictions.

    Raises:
        TypeError: If the model is no ``SupervisedModel``, or ``attack`` no function.
        ValueError: If labels are not as many as inputs.
    """
    if not callable(attack) or isinstance(attack, type):
        raise TypeError(f"attack: expected an attack such as robustness.PGD(0.1), got {attack!r}.")
    behind = DenoisedModel(model, denoiser)
    if len(x) != len(y):
        raise ValueError(f"y: expected as many labels as inputs, got {len(y)} and {len(x)}.")
    options = {"num_samples": num_samples, "seed": seed}
    grey, white = attack(model, guide, x, y, **options), attack(behind, guide, x, y, **options)
    cases = {
        "clean": (model, x),
        "clean, denoised": (behind, x),
        "attacked": (model, grey),
        "grey box": (behind, grey),
        "white box": (behind, white),
    }
    accuracies, intervals = {}, {}
    for name, (on, inputs) in cases.items():
        found = predict(on, guide, inputs, num_samples, seed=seed).predicted.to(y.device)
        share = (found == y).double().mean()
        low, high = wilson_interval(share, torch.tensor(len(y)))
        accuracies[name], intervals[name] = float(share), (float(low), float(high))
    return DenoiserReport(accuracies, intervals, len(y))
