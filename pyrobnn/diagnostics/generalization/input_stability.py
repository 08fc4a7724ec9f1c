r"""How predictions react to small changes of an input: Jacobian norms and the curvature of the loss, at given inputs.

At an input x the network stretches small changes by at most :math:`\|J_f(x)\|_2`, the local Lipschitz constant, and the
loss bends by at most the top eigenvalue of :math:`\nabla_x^2 L(x)`. Both are found by power iteration without forming a
matrix. Products :math:`J^\top u` are vector-Jacobian products; :math:`J v` is the derivative of
:math:`u \mapsto v^\top J^\top u`, so one recorded run serves all iterations. Training against attacks lowers both, and
a low gradient with a high curvature is a sign of masking.

Moosavi-Dezfooli et al., *Robustness via curvature regularization, and vice versa* (2019); Deng et al., *Adversarial
distributional training* (2020).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pyrobnn.core.arguments import check_positive_int
from pyrobnn.core.explanations import explained
from pyrobnn.core.gradient_modes import gradients_enabled, ordinary, refuse_inference_tensors
from pyrobnn.diagnostics.generalization.lipschitz import check_inputs, lipschitz_bound
from pyrobnn.diagnostics.generalization.power_iteration import top_eigenvalues, top_singular_values
from pyrobnn.model.bayesianize import BayesianModule, evaluating, frozen_buffers
from pyrobnn.model.draws import Draws, installed_buffers
from pyrobnn.model.likelihoods import Likelihood
from pyrobnn.model.likelihoods.reductions import widened
from pyrobnn.model.substitution import SubstituteMessenger
from pyrobnn.model.supervised import SupervisedModel
from pyrobnn.prediction.draws import PinnedDraws, check_posterior
from pyrobnn.prediction.runners import Runner

__all__ = ["InputStability", "input_curvature", "input_stability", "local_lipschitz"]

Function = Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class InputStability:
    """What each of K draws does to N inputs.

    Attributes:
        local: Spectral norm of the Jacobian of the outputs ``[K, N]``.
        curvature: Top eigenvalue of the Hessian of ``-log p(y | x, w)`` by the input ``[K, N]``; None without targets.
        product: Product bound of the Lipschitz constant ``[K]``; None where the network is no chain of layers.
    """

    local: Tensor
    curvature: Tensor | None
    product: Tensor | None

    def summary(self) -> dict[str, tuple[float, float]]:
        """Mean and standard deviation over the draws (0 for a single one) of each quantity's mean over the inputs."""
        given = {"product bound": self.product, "Jacobian norm": self.local, "top input curvature": self.curvature}
        found = {}
        for name, values in given.items():
            if values is not None:
                by_draw = values.double().reshape(len(values), -1).mean(1)
                found[name] = (float(by_draw.mean()), float(by_draw.std()) if len(by_draw) > 1 else 0.0)
        return found

    def __str__(self) -> str:
        parts = [f"{name} {mean:.4g} ± {spread:.2g}" for name, (mean, spread) in self.summary().items()]
        return f"{', '.join(parts)} (mean and standard deviation over {len(self.local)} draws)"


@explained
def input_stability(
    model: nn.Module,
    posterior: Any,
    x: Tensor,
    y: Tensor | None = None,
    *,
    num_samples: int = 10,
    likelihood: Likelihood | None = None,
    max_bytes: int = 256 * 2**20,
    seed: int | None = None,
) -> InputStability:
    """Jacobian norms, curvature of the loss and product bounds of a posterior's draws.

    Args:
        model: A :class:`~pyrobnn.SupervisedModel`, or any Pyro model that returns the network's outputs when called
            with inputs only (then ``likelihood`` is needed). It is run in evaluation mode.
        posterior: A guide, or draws ``{site: [K, *site shape]}``.
        x: Inputs ``[N, ...]``, which the network must see one by one.
        y: Their targets, for the curvature of the loss.
        num_samples: Number K of draws.
        likelihood: What the outputs mean; the model's own if None.
        max_bytes: Budget for draws.
        seed: Fixes the draws.

    Returns:
        The values by draw and input, with their ``summary()``.

    Raises:
        TypeError: If the inputs or the posterior are of the wrong kind.
        ValueError: If an argument is out of range, or inputs and targets do not fit.
    """
    check_inputs(x)
    check_positive_int("num_samples", num_samples)
    check_positive_int("max_bytes", max_bytes)
    refuse_inference_tensors(model=model)
    check_posterior(model, posterior, "posterior")
    runner = Runner(model, likelihood, "loop", max_bytes)
    x = ordinary(x.detach()).to(runner.device)
    local, curvature, product = [], [], []
    with gradients_enabled(), runner.ready():
        for chunk in PinnedDraws(posterior, num_samples, max_bytes, replayed=False, seed=seed):
            several = Draws.of(chunk)
            for index in range(len(next(iter(several.values())))):
                draw = several.at(index)
                function = functools.partial(runner.outputs, draw)
                with installed_buffers(model, draw.buffers), SubstituteMessenger(draw):
                    local.append(_jacobian_norms(function, x))
                    if y is not None:
                        curvature.append(_curvatures(_loss(function, runner.likelihood, y), x))
                product.append(_product(model, draw, x))
    known = [bound for bound in product if bound is not None]
    return InputStability(
        torch.stack(local),
        torch.stack(curvature) if curvature else None,
        torch.tensor(known, dtype=torch.float64) if len(known) == len(product) else None,
    )


@explained
def local_lipschitz(net: nn.Module, x: Tensor) -> Tensor:
    """Spectral norm of the Jacobian of a network at each input ``[N]``, in evaluation mode.

    Args:
        net: The network, which must see the inputs one by one.
        x: Inputs ``[N, ...]``.

    Raises:
        TypeError: If ``x`` is no floating-point tensor.
        ValueError: If it is empty or not finite.
    """
    _check_network(net)
    check_inputs(x)
    with gradients_enabled(), evaluating(net), frozen_buffers(net):
        return _jacobian_norms(net, ordinary(x.detach()))


@explained
def input_curvature(net: nn.Module, x: Tensor, y: Tensor, likelihood: Likelihood) -> Tensor:
    """Top eigenvalue of the Hessian of ``-log p(y | f(x))`` by the input, for each input ``[N]``.

    Args:
        net: The network, which must see the inputs one by one; it is run in evaluation mode.
        x: Inputs ``[N, ...]``.
        y: Their targets, as the likelihood expects them.
        likelihood: What the outputs mean, such as ``likelihoods.Categorical()``.

    Raises:
        TypeError: If ``x`` is no floating-point tensor.
        ValueError: If inputs and targets do not fit.
    """
    _check_network(net)
    check_inputs(x)
    if not isinstance(likelihood, Likelihood):
        raise TypeError(f"likelihood: expected one of pyrobnn.likelihoods, got {type(likelihood).__name__}.")
    with gradients_enabled(), evaluating(net), frozen_buffers(net):
        return _curvatures(_loss(net, likelihood, y), ordinary(x.detach()))


def _check_network(net: Any) -> None:
    if not isinstance(net, nn.Module):
        raise TypeError(f"net: expected a torch.nn.Module, got {type(net).__name__}.")


def _loss(function: Function, likelihood: Likelihood, y: Tensor) -> Function:
    """The negative log likelihood of each input ``[N]``."""
    if not isinstance(y, Tensor):
        raise TypeError(f"y: expected a tensor of targets, got {type(y).__name__}.")

    def loss(rows: Tensor) -> Tensor:
        outputs = function(rows)
        likelihood.check_targets(outputs, y)
        score = likelihood.observation(likelihood.parameters_of(widened(outputs))).log_prob(y)
        return -score.reshape(len(y), -1).sum(-1)

    return loss


def _jacobian_norms(function: Function, x: Tensor) -> Tensor:
    leaf = x.clone().requires_grad_()
    outputs = function(leaf)
    if not outputs.requires_grad:
        return x.new_zeros(len(x))
    dual = torch.zeros_like(outputs).requires_grad_()
    (pulled,) = torch.autograd.grad(outputs, leaf, dual, create_graph=True)

    def forward(v: Tensor) -> Tensor:
        return torch.autograd.grad(pulled, dual, v, retain_graph=True)[0]

    def adjoint(u: Tensor) -> Tensor:
        return torch.autograd.grad(outputs, leaf, u, retain_graph=True)[0]

    return top_singular_values(forward, adjoint, x).detach()


def _curvatures(loss: Function, x: Tensor) -> Tensor:
    leaf = x.clone().requires_grad_()
    (slope,) = torch.autograd.grad(loss(leaf).sum(), leaf, create_graph=True)
    if not slope.requires_grad:  # a loss that is linear in the inputs
        return x.new_zeros(len(x))

    def product(v: Tensor) -> Tensor:
        (moved,) = torch.autograd.grad(slope, leaf, v, retain_graph=True, allow_unused=True)
        return torch.zeros_like(v) if moved is None else moved

    return top_eigenvalues(product, x).detach()


def _product(model: nn.Module, draw: Draws, x: Tensor) -> float | None:
    """The product bound under one draw; None where the network is no chain of layers."""
    if not (isinstance(model, SupervisedModel) and isinstance(net := model.net, BayesianModule)):
        return None
    with torch.no_grad(), installed_buffers(model, draw.buffers):
        with SubstituteMessenger(draw, direct=True):
            weights = net.sample_weights()
        with net.written(weights) as plain:
            try:
                return lipschitz_bound(plain, x).product
            except ValueError:
                return None
