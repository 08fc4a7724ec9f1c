r"""ADDA: a target encoder of its own, trained until a discriminator takes its features for the source's.

.. math::  \min_D\; -E_s \log D(f_s(x)) - E_t \log(1 - D(f_t(x))), \qquad
           \min_{f_t}\; -E_t \log D(f_t(x)),

where the source's encoder :math:`f_s` is fixed, and :math:`f_t` begins as a copy of it and keeps its classifier. Tzeng,
Hoffman, Saenko & Darrell, *Adversarial Discriminative Domain Adaptation* (2017).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

from models.domain_adaptation.alignment import DomainAlignment
from models.domain_adaptation.unlabeled_targets import unlabeled
from pyrobnn.core.batches import inputs_of
from pyrobnn.guides.base import Guide
from pyrobnn.model.bayesianize import evaluating
from pyrobnn.model.supervised import SupervisedModel
from pyrobnn.objectives import UnlabeledLoader
from pyrobnn.training import DiscriminatorWatch, Game, GameHistory, GamePlayer, Phase, discriminator_values

__all__ = ["adapt_encoder"]


def adapt_encoder(
    model: SupervisedModel,
    guide: Guide,
    source: Iterable[Any],
    target: Iterable[Any] | UnlabeledLoader,
    discriminator: nn.Module,
    *,
    epochs: int,
    lr: float = 1e-4,
    optimizer: Callable[..., Optimizer] | None = None,
    layer: str | None = None,
    seed: int | None = None,
    progress: bool = True,
) -> tuple[SupervisedModel, Guide, GameHistory]:
    """Adapts a network that was trained on the source.

    Args:
        model: The model, of a likelihood of classes.
        guide: Its guide, fitted to the source; both stay as they are.
        source: Yields inputs, or pairs whose labels are not read.
        target: An :class:`~pyrobnn.objectives.UnlabeledLoader`, or an iterable of input batches, begun again when it
            ends.
        discriminator: A network from features ``[B, F]`` to one logit ``[B, 1]``.
        epochs: Passes over the source.
        lr: Learning rate of both players.
        optimizer: A function from parameters and ``lr`` to a torch optimizer; Adam if None.
        layer: The layer whose inputs are the features; None for the one with a weight matrix that runs last.
        seed: Fixes all randomness of the call.
        progress: Show a progress bar.

    Returns:
        Model and guide for the target, copies whose parameters before ``layer`` were trained, and the history.

    Raises:
        TypeError: If an argument is of another kind.
        ValueError: If there is no such layer, or no target.
    """
    if not isinstance(guide, Guide) or not isinstance(model, SupervisedModel):
        raise TypeError(f"model, guide: expected those of pyrobnn, got {type(model).__name__}, {type(guide).__name__}.")
    adapted, own = copy.deepcopy((model, guide))
    term = DomainAlignment(unlabeled(target), [], layer=layer)

    def features(network: SupervisedModel, posterior: Guide, x: Any) -> Tensor:
        with evaluating(network):
            return term.run(network, posterior.step(network, sequential=False).draw(None), x).features

    def logits(x: Tensor) -> Tensor:
        found: Tensor = discriminator(x)
        return found.reshape(-1)

    def of_discriminator(raw: Any) -> tuple[Tensor, dict[str, Tensor]]:
        with torch.no_grad():
            pair = features(model, guide, inputs_of(raw, "source")[0]), features(adapted, own, term.source.next(None))
        real, fake = (logits(side) for side in pair)
        return F.softplus(-real).mean() + F.softplus(fake).mean(), discriminator_values(real, fake)

    def of_encoder(_: Any) -> Tensor:
        return F.softplus(-logits(features(adapted, own, term.source.next(None)))).mean()

    players = GamePlayer("discriminator", discriminator, optimizer, lr), GamePlayer("encoder", own, optimizer, lr)
    game = Game([Phase(players[0], of_discriminator), Phase(players[1], of_encoder)])
    history = game.play(
        source, epochs=epochs, callbacks=[DiscriminatorWatch("discriminator")], seed=seed, progress=progress
    )
    return adapted, own, history
