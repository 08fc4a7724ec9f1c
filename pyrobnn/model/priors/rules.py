r"""Prior rules: which prior each parameter of a network gets.

A rule is a Pyro distribution, or a function ``(name, parameter, module) -> prior or None`` such as those made here;
rules are applied alone (to every ordinary weight) or as an ordered list of ``(pattern, rule or None)``, first match
wins. ``None`` keeps a parameter deterministic. See :func:`~pyrobnn.model.priors.assignment.assign` for the exact
semantics.

Fan-in scaling (:func:`he`, :func:`lecun`, :func:`glorot`) keeps the prior variance of the activations constant
through depth: :math:`\mathrm{sd}(w) = \sqrt{g / \mathrm{fan}}`, with gain :math:`g = 2` for ReLU networks (He et
al. 2015) and 1 otherwise (LeCun et al. 1998), the fan of Glorot & Bengio (2010) being
:math:`(\mathrm{fan_{in}} + \mathrm{fan_{out}}) / 2`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyrobnn.core.arguments import check_positive, check_probability
from pyrobnn.core.explanations import explained
from pyrobnn.model.priors.base import Prior
from pyrobnn.model.priors.hierarchical import HorseshoePrior, LatentScalePrior, LearnedScalePrior

__all__ = [
    "NORM_LAYERS",
    "Pattern",
    "PriorRule",
    "PriorSpec",
    "centered",
    "default",
    "fan_in_and_out",
    "glorot",
    "he",
    "horseshoe",
    "last_layer",
    "latent_scale",
    "learned_scale",
    "lecun",
    "scale_mixture",
]

PriorRule: TypeAlias = dist.Distribution | Callable[[str, Tensor, nn.Module], "dist.Distribution | Prior | None"]
Pattern: TypeAlias = str | type[nn.Module] | tuple[type[nn.Module], ...]
PriorSpec: TypeAlias = PriorRule | Sequence[tuple[Pattern, PriorRule | None]]

NORM_LAYERS: tuple[type[nn.Module], ...] = (
    nn.BatchNorm1d,
    nn.BatchNorm2d,
    nn.BatchNorm3d,
    nn.SyncBatchNorm,
    nn.InstanceNorm1d,
    nn.InstanceNorm2d,
    nn.InstanceNorm3d,
    nn.LayerNorm,
    nn.GroupNorm,
    nn.RMSNorm,
)
"""Normalization layers; their parameters stay deterministic unless a rule names them."""


def default() -> dist.Distribution:
    """``Normal(0, 1)`` on weights and biases: what ``prior=None`` means, for inputs and targets of unit scale.

    Priors that shrink with the width, such as :func:`he`, make zero the mode of small data sets: a hidden unit then
    costs more log prior than its fit of the data gains. ``Normal(0, 1)`` leaves a unit what ordinary training gives it.
    It is wide for deep networks: state a prior where the functions that it draws matter.
    """
    return dist.Normal(0.0, 1.0)


# --------------------------------------------------------------------------------------------- scaled families


def _family(name: str, scale: float) -> dist.Distribution:
    """A zero-centered distribution of the named family with standard deviation ``scale``."""
    if name == "normal":
        return dist.Normal(0.0, scale)
    if name == "laplace":
        return dist.Laplace(0.0, scale / math.sqrt(2.0))
    if name == "student_t":
        return dist.StudentT(5.0, 0.0, scale * math.sqrt(3.0 / 5.0))
    raise ValueError(f"family: expected 'normal', 'laplace' or 'student_t', got {name!r}.")


@explained
def fan_in_and_out(parameter: Tensor, module: nn.Module) -> tuple[float, float]:
    """Inputs summed into one output unit, and outputs fed by one input unit, of a weight.

    Transposed convolutions store ``[in, out / groups, *kernel]`` and spread each input over the kernel, of which
    only one tap in ``stride`` meets a given output; an embedding row is used alone (fan-in 1); stacked matrices
    (attention's ``in_proj_weight``, an LSTM's gates) count one block, not the stack.
    """
    out_features, in_features = parameter.shape[0], parameter[0].numel()
    if isinstance(module, nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d):
        kernel = math.prod(module.kernel_size)
        fan_in = module.in_channels / module.groups * kernel / math.prod(module.stride)
        return max(fan_in, 1.0), module.out_channels / module.groups * kernel
    if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        kernel = math.prod(module.kernel_size)
        return float(in_features), module.out_channels / module.groups * kernel
    if isinstance(module, nn.Embedding | nn.EmbeddingBag):
        return 1.0, float(in_features)
    if isinstance(module, nn.MultiheadAttention) and out_features == 3 * in_features:
        return float(in_features), float(in_features)
    if isinstance(module, nn.RNNBase):
        return float(in_features), float(module.hidden_size)
    return float(in_features), float(out_features)


@dataclass(frozen=True)
class _FanScaled:
    """The rule behind :func:`he`, :func:`lecun` and :func:`glorot`."""

    gain: float
    average: bool
    bias_scale: float
    family: str

    def __post_init__(self) -> None:
        check_positive("bias_scale", self.bias_scale, "standard deviation")

    def __call__(self, name: str, parameter: Tensor, module: nn.Module) -> dist.Distribution:
        if parameter.dim() < 2:
            center = float(isinstance(module, NORM_LAYERS) and name.endswith("weight"))
            return dist.Normal(center, self.bias_scale)
        fan_in, fan_out = fan_in_and_out(parameter, module)
        fan = (fan_in + fan_out) / 2 if self.average else fan_in
        return _family(self.family, math.sqrt(self.gain / fan))


@explained
def he(*, bias_scale: float = 1.0, family: str = "normal") -> PriorRule:
    """Variance ``2 / fan_in``, for ReLU networks (He et al. 2015).

    Args:
        bias_scale: Standard deviation for biases and other vectors.
        family: ``"normal"``, ``"laplace"`` or ``"student_t"`` (5 degrees of freedom), of equal variance.
    """
    return _FanScaled(2.0, False, bias_scale, family)


@explained
def lecun(*, bias_scale: float = 1.0, family: str = "normal") -> PriorRule:
    """Variance ``1 / fan_in`` (LeCun et al. 1998); arguments as in :func:`he`."""
    return _FanScaled(1.0, False, bias_scale, family)


@explained
def glorot(*, bias_scale: float = 1.0, family: str = "normal") -> PriorRule:
    """Variance ``2 / (fan_in + fan_out)`` (Glorot & Bengio 2010); arguments as in :func:`he`."""
    return _FanScaled(1.0, True, bias_scale, family)


# ------------------------------------------------------------------------------------------------ other priors


@explained
def scale_mixture(pi: float = 0.5, sigma1: float = 1.0, sigma2: float = math.exp(-6.0)) -> dist.Distribution:
    """Mixture ``pi N(0, sigma1²) + (1 - pi) N(0, sigma2²)`` of Blundell et al. (2015)."""
    check_probability("pi", pi)
    check_positive("sigma1", sigma1, "standard deviation")
    check_positive("sigma2", sigma2, "standard deviation")
    components = dist.Normal(torch.zeros(2), torch.tensor([float(sigma1), float(sigma2)]))
    return dist.MixtureSameFamily(dist.Categorical(torch.tensor([pi, 1.0 - pi])), components)


@explained
def centered(scale: float = 1.0) -> PriorRule:
    """``Normal(w0, scale)`` around the network's present (pretrained) weights ``w0`` (MOPED, Krishnan et al. 2020)."""
    check_positive("scale", scale, "standard deviation")

    def rule(name: str, parameter: Tensor, module: nn.Module) -> dist.Distribution:
        return dist.Normal(parameter.detach().clone(), torch.tensor(float(scale), dtype=parameter.dtype))

    return rule


@explained
def horseshoe(scale: float = 1.0) -> PriorRule:
    """Non-centered horseshoe with global scale ``C+(0, scale)`` (:class:`HorseshoePrior`)."""
    check_positive("scale", scale)
    return lambda name, parameter, module: HorseshoePrior(parameter.shape, scale)


@explained
def latent_scale(scale: dist.Distribution | None = None) -> PriorRule:
    """``Normal(0, σ)`` with ``σ ~ scale`` inferred for each tensor; half-normal by default."""
    return lambda name, parameter, module: LatentScalePrior(parameter.shape, scale or dist.HalfNormal(1.0))


@explained
def learned_scale(initial: float = 1.0) -> PriorRule:
    """``Normal(0, σ)`` with σ fitted for each tensor by maximizing the ELBO (empirical Bayes)."""
    check_positive("initial", initial, "standard deviation")
    return lambda name, parameter, module: LearnedScalePrior(parameter.shape, initial)


@explained
def last_layer(net: nn.Module, prior: PriorRule, name: str | None = None) -> list[tuple[Pattern, PriorRule | None]]:
    """Rules that make only the last weighted layer of ``net`` Bayesian and keep the rest deterministic.

    The rest is still trained unless its ``requires_grad`` is off.

    Args:
        net: The network.
        prior: The layer's prior.
        name: The layer's name. If None, it is the layer that is defined last, which need not be the one that runs last.

    Raises:
        ValueError: If there is no such layer, or its weights are tied to another's.
    """
    modules = dict(net.named_modules())
    if name is not None and name not in modules:
        raise ValueError(f"name: the network has no module {name!r}.")
    layers = [
        name
        for name, module in modules.items()
        if any(p.dim() > 1 for p in module.parameters(recurse=False)) and not isinstance(module, NORM_LAYERS)
    ]
    if not layers:
        raise ValueError("net: no layer with a weight matrix was found, so there is no last layer.")
    layer = layers[-1] if name is None else name
    own = {id(parameter) for parameter in modules[layer].parameters()}
    inside = {id(module) for module in modules[layer].modules()}
    for other, module in modules.items():
        if id(module) not in inside and any(id(p) in own for p in module.parameters(recurse=False)):
            raise ValueError(
                f"net: the last layer {layer!r} shares its weights with {other!r} (tied), so they would be random "
                "there, too; name the parameters in rules of your own."
            )
    last = f"{layer}." if layer else ""
    rules: list[tuple[Pattern, PriorRule | None]] = [(f"{last}*", prior)]
    return rules if last == "" else [*rules, ("*", None)]
