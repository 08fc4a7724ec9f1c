r"""The model of Bayesian LoRA: priors on adapters, everything else as it is.

.. math::  p(A, B) \prod_{i=1}^N p(y_i \mid f_{W + \frac{\alpha}{r} B A}(x_i)),

with the base weights W frozen. It is an ordinary :class:`~pyrobnn.SupervisedModel`, so each guide and sampler is a
Bayesian LoRA of its own:

* BLoB (Wang et al. 2024): ``random="A"`` and :class:`~pyrobnn.guides.MeanField`, a Gaussian over A and a trained
  point B, so that no product of two noises appears;
* Laplace LoRA (Yang et al. 2024): :class:`~pyrobnn.guides.Laplace` with ``structure="kronecker"``;
* ensembles, SWAG, chains: the guides and samplers of these names.

The base is in memory once: the model shares it with the network that it is given, and draws, members, snapshots and
checkpoints hold adapters only.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from typing import Any, Literal

import pyro.distributions as dist
from torch import Tensor, nn

from pyrobnn.core.explanations import explained
from pyrobnn.lora.adapters import adapter_parameters, is_first_factor, is_second_factor
from pyrobnn.model.bayesianize import bayesianize
from pyrobnn.model.likelihoods import Likelihood
from pyrobnn.model.priors import Prior, PriorRule, lecun
from pyrobnn.model.supervised import OutputSpec, SupervisedModel

__all__ = ["model"]


@explained
def model(
    net: nn.Module,
    likelihood: Likelihood,
    prior: PriorRule | None = None,
    *,
    num_data: int,
    random: Literal["A", "B", "all"] | str | Sequence[str] = "all",
    output: OutputSpec = "logits",
) -> SupervisedModel:
    """A model whose random weights are LoRA adapters, around a frozen base that is not copied.

    Parameters that are trained beside the adapters (a new head in ``modules_to_save``) or that ``random`` leaves out
    are trained as points without a prior. The base stays frozen; its memory is that of ``net``, whose base must stay
    unchanged as long as the model is used.

    Args:
        net: A network with LoRA adapters made by PEFT, such as ``get_peft_model(net, LoraConfig(...))``.
        likelihood: From the logits to the distribution of the targets: ``Categorical()`` for classes of sequences,
            ``Categorical(ignore_index=-100)`` for classes of tokens, and with :func:`~pyrobnn.lora.next_tokens` for
            causal language models.
        prior: The prior of the random weights, a Pyro distribution or a rule ``(name, parameter, module) -> prior``.
            None for the default: A has variance 1/in and B 1/r, so that the change of a weight is a priori α/r times a
            weight of LeCun's scale; objectives temper the divergence of guides that have more numbers than there are
            data, as under each default prior.
        num_data: Number N of training data; rows of sequences, not tokens.
        random: Which weights are random: the factors ``"A"``, ``"B"``, or ``"all"`` of both; or globs on names in the
            network, such as ``"*layers.1.*lora_*"`` or ``["*lora_*", "*modules_to_save*"]``, that may name any weight.
        output: What of the network's return value the likelihood is given, as for :class:`~pyrobnn.SupervisedModel`.

    Returns:
        The model, for :func:`pyrobnn.fit`, :func:`pyrobnn.sample`, :func:`pyrobnn.predict` and all else.

    Raises:
        ImportError: If PEFT is not installed.
        TypeError: If an argument is of the wrong kind.
        ValueError: If there are no adapters, they are merged, disabled or all frozen, or a glob matches nothing.
    """
    factors = adapter_parameters(net)
    if not any(parameter.requires_grad for parameter in factors.values()):
        raise ValueError(
            "net: all adapters are frozen; load them by PeftModel.from_pretrained(..., is_trainable=True), or call "
            "requires_grad_(True) on those to be random."
        )
    if prior is not None and not isinstance(prior, dist.Distribution) and not callable(prior):
        raise TypeError(
            f"prior: expected one prior for the random weights, a Pyro distribution or a rule, got {prior!r}; for "
            "priors by name use SupervisedModel(bayesianize(net, rules, share_frozen=True), ...)."
        )
    chosen = _chosen(net, list(factors), random)
    rule = _default if prior is None else prior
    network = bayesianize(
        net,
        [(nn.Module, lambda name, parameter, module: _of(rule, name, parameter, module) if name in chosen else None)],
        share_frozen=True,
    )
    network.has_default_prior = prior is None
    return SupervisedModel(network, likelihood, num_data=num_data, output=output)


def _chosen(net: nn.Module, factors: list[str], random: Any) -> set[str]:
    """Names of the parameters that are random.

    Raises:
        TypeError: If ``random`` is no string and no sequence of strings.
        ValueError: If nothing is chosen, or a pattern matches nothing.
    """
    globs = [random] if isinstance(random, str) else random
    if not isinstance(globs, Sequence) or not globs or not all(isinstance(glob, str) for glob in globs):
        raise TypeError(
            f"random: expected 'A', 'B', 'all', a glob on names of parameters or a list of globs, got {random!r}."
        )
    names = [name for name, _ in net.named_parameters()]
    chosen: set[str] = set()
    for glob in globs:
        if glob == "all":
            found = set(factors)
        elif glob in ("A", "B"):
            found = {name for name in factors if (is_first_factor if glob == "A" else is_second_factor)(name)}
        else:
            found = {name for name in names if fnmatch.fnmatchcase(name, glob)}
        if not found:
            raise ValueError(
                f"random: {glob!r} matches no parameter; the adapters are {', '.join(factors[:4])}"
                f"{', …' if len(factors) > 4 else ''}."
            )
        chosen |= found
    return chosen


def _of(rule: PriorRule, name: str, parameter: Tensor, module: nn.Module) -> dist.Distribution | Prior | None:
    return rule if isinstance(rule, dist.Distribution) else rule(name, parameter, module)


def _default(name: str, parameter: Tensor, module: nn.Module) -> dist.Distribution | Prior | None:
    """Variance 1 / fan-in; a row of an embedding's A is used alone, so its fan-in is 1."""
    if "lora_embedding_A" in name:
        return dist.Normal(0.0, 1.0)
    scaled: Any = lecun()
    return scaled(name, parameter, module)
