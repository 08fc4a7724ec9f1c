r"""Structured GANs: a generator of images given a class and a style, and a classifier from few labels.

Five networks: the generator :math:`G(y, z)`, a classifier :math:`C(x)` and an inference network :math:`I(x)`, which go
back to class and style, and two discriminators of pairs. Two adversarial games and two reconstructions,

.. math::  L_{xy} = E_{p(x, y)} \log D_{xy}(x, y) + E_{p(y) p(z)} \log(1 - D_{xy}(G(y, z), y)),\\
           L_{xz} = E_{p(x)} \log D_{xz}(x, I(x)) + E_{p(y) p(z)} \log(1 - D_{xz}(G(y, z), z)),\\
           R_y = -E_{p(y) p(z)} \log p_C(y \mid G(y, z)), \qquad
           R_z = \tfrac{1}{2} E_{p(y) p(z)} \|z - I(G(y, z))\|^2 .

G minimizes all four, I its side of :math:`L_{xz}` and :math:`R_z`, C the cross-entropy of the labels and more
(:class:`SGANOptions`). At an equilibrium of the two adversarial games alone G makes the data of each class, and
minimizing :math:`R_z` over I or :math:`R_y` over C does not leave it, since their minima are the posteriors of style
and class under G (Theorem 3.3). The reconstructions hinder z from holding the class, and y the style.

Deng, Zhang, Liang, Yang, Xu, Zhu & Xing, *Structured Generative Adversarial Networks* (2017).
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim.lr_scheduler import LambdaLR

from models.conditional_gan import ConditionalGAN, adam, discriminator_loss, generator_loss
from models.late_ramp import published_ramp
from models.semi_supervised import check_labels
from pyrobnn.core import schedules
from pyrobnn.core.arguments import check_non_negative, check_number
from pyrobnn.core.schedules import Schedule
from pyrobnn.training import Game, GamePlayer, Phase, discriminator_values

__all__ = ["SGANOptions", "StructuredGAN"]


@dataclass(frozen=True)
class SGANOptions:
    """What the classifier and the pairs of a structured GAN are trained with; most of it is in the authors' code only.

    Weights may be schedules of the epoch.

    Attributes:
        style: Factor of R_z, for G and I (1 in the paper).
        label: Factor of R_y, for G (1 in the paper).
        generated: Factor of R_y in the loss of C: cross-entropy on generated samples (the code for SVHN, where it is
            zero at first, as a :class:`~models.late_ramp.LateRamp`). C's own accuracy on samples does not show whether
            they have their class, since R_y draws G to what C calls one; a judge that knows other data does.
        entropy: Factor of the entropy of C on unlabeled rows (Springenberg 2016; 0.3 in the code).
        balance: Factor of the cross-entropy between the uniform distribution and the mean prediction of a batch
            (Springenberg 2016; 1e-3 in the code).
        consistency: Factor of the squared distance of two predictions with the networks' own noise (Laine & Aila 2017;
            100 in the code for CIFAR-10, with ``pyrobnn.schedules.GaussianRampUp``).
        pseudo_labels: Share of the real pairs of D_xy whose label C has predicted (up to 160 of 200 in the code).
        generated_pairs: Share of the real pairs of D_xy that are generated ones (10 of 200 late in the code).
        averaging: Decay of the running average of C, with which is evaluated (0.99 in the code).
        generator_averaging: That of G (ours; None in the code).
    """

    style: Schedule = 1.0
    label: Schedule = 1.0
    generated: Schedule = published_ramp
    entropy: Schedule = 0.3
    balance: Schedule = 1e-3
    consistency: Schedule = 0.0
    pseudo_labels: float = 0.8
    generated_pairs: float = 0.0
    averaging: float | None = 0.99
    generator_averaging: float | None = 0.99

    def __post_init__(self) -> None:
        for name in _WEIGHTS:
            if not callable(getattr(self, name)):
                check_non_negative(name, getattr(self, name))
        for name in ("pseudo_labels", "generated_pairs"):
            check_number(name, getattr(self, name), 0.0, 1.0)
        if self.pseudo_labels + self.generated_pairs > 1.0:
            raise ValueError("pseudo_labels: together with generated_pairs these are more than all real pairs.")


_WEIGHTS = ("style", "label", "generated", "entropy", "balance", "consistency")


class StructuredGAN(ConditionalGAN):
    """A structured GAN; as a Pyro program it is that of :class:`~models.conditional_gan.ConditionalGAN`::

        game = sgan.game()
        sgan.pretraining(game).play(batches, epochs=5)  # of the classifier alone
        game.play(batches, epochs=100, callbacks=[DiscriminatorWatch("D_xy"), DiscriminatorWatch("D_xz")])
        trained = sgan.averaged(game)
        trained.classifier(x), trained.draw(100), trained.inference(x)

    Args:
        generator: G, from one-hot classes ``[B, K]`` and styles ``[B, latent_dim]`` to samples.
        classifier: C, from samples to logits ``[B, K]``.
        label_discriminator: D_xy, from samples and one-hot classes to logits ``[B, 1]``.
        inference: I, from samples to styles; None, with the next: no game of the style, a conditional GAN that has a
            classifier.
        style_discriminator: D_xz, from samples and styles to logits ``[B, 1]``.
        num_classes: K.
        latent_dim: Length of the style z.
        prior: p(z) of one number; None: standard normal. (The code takes a uniform distribution on [0, 1].)
        options: How to train.

    Raises:
        ValueError: If one of I and D_xz is missing.
    """

    def __init__(
        self,
        generator: nn.Module,
        classifier: nn.Module,
        label_discriminator: nn.Module,
        inference: nn.Module | None = None,
        style_discriminator: nn.Module | None = None,
        *,
        num_classes: int = 10,
        latent_dim: int = 32,
        prior: dist.Distribution | None = None,
        options: SGANOptions | None = None,
    ) -> None:
        super().__init__(generator, label_discriminator, num_classes=num_classes, latent_dim=latent_dim, prior=prior)
        if (inference is None) != (style_discriminator is None):
            raise ValueError("inference: the game of the style needs both I and D_xz; pass both or none.")
        self.classifier, self.inference, self.style_discriminator = classifier, inference, style_discriminator
        self.options = SGANOptions() if options is None else options

    def game(  # type: ignore[override]  # its discriminators take one step
        self,
        *,
        lr: float = 3e-4,
        classifier_lr: float | None = None,
        betas: tuple[float, float] = (0.5, 0.999),
        decay_from: int | None = None,
    ) -> Game:
        """The game, phases ``"D_xy"``, ``"D_xz"``, ``"I"``, ``"G"`` and ``"C"``; batches are ``(x, y, unlabeled)``.

        Args:
            lr: Adam's learning rate (3e-4 in the code).
            classifier_lr: That of C; None: the same (3e-3 in the code for CIFAR-10).
            betas: Adam's decay rates.
            decay_from: Epoch after which all rates are multiplied by 0.995 an epoch (300 in the code); None: never.
        """
        rates = None if decay_from is None else partial(LambdaLR, lr_lambda=_Decay(decay_from))

        def player(name: str, module: nn.Module, rate: float = lr, averaging: float | None = None) -> GamePlayer:
            return GamePlayer(
                name, module, adam(betas), rate, scheduler=rates, scheduler_per="epoch", averaging=averaging
            )

        phases = [Phase(player("D_xy", self.discriminator), self._of_label_discriminator)]
        if self.style_discriminator is not None and self.inference is not None:
            phases += [
                Phase(player("D_xz", self.style_discriminator), self._of_style_discriminator),
                Phase(player("I", self.inference), self._of_inference),
            ]
        phases += [
            Phase(player("G", self.generator, averaging=self.options.generator_averaging), self._of_structured),
            Phase(player("C", self.classifier, classifier_lr or lr, self.options.averaging), self._of_classifier),
        ]
        game = Game(phases)
        self._seen = game.history
        return game

    def pretraining(self, game: Game) -> Game:
        """A game of the classifier alone, a player of ``game``: labels, entropy and balance (50 epochs in the code).

        Generated samples and consistency have no weight in it.
        """
        player = next(player for player in game.players if player.name == "C")

        def loss(batch: Any) -> Tensor:
            x, y, unlabeled = self._three(batch)
            return cross_entropy(self.classifier(x), y) + self._unlabeled_terms(self.classifier(unlabeled))[0]

        return Game([Phase(player, loss)])

    def averaged(self, game: Game) -> StructuredGAN:
        """A copy with the running averages of classifier and generator, where they are kept."""
        found = {player.name: player.average for player in game.players if player.average is not None}
        twin = copy.copy(self)
        twin._modules = dict(self._modules)
        twin.generator = found.get("G", self.generator)
        twin.classifier = found.get("C", self.classifier)
        return twin

    def weight(self, name: str) -> float:
        """The present value of a weight of the options."""
        return schedules.value_at(name, getattr(self.options, name), self._seen.epochs, allow_zero=True)

    def _three(self, batch: Any) -> tuple[Tensor, Tensor, Tensor]:
        if not isinstance(batch, list | tuple) or len(batch) != 3:
            raise TypeError(
                "batch: expected (x, y, unlabeled), such as those of SemiSupervisedBatches, got "
                f"{type(batch).__name__}."
            )
        x, y, unlabeled = batch
        if self._seen.epochs == 0:
            check_labels(y, self.num_classes or 1)
        return x, y, unlabeled

    def _pairs(self, rows: int) -> tuple[Tensor, Tensor, Tensor]:
        """Classes from p(y), styles from p(z), and what G makes of them."""
        y = torch.multinomial(self.class_probs, rows, replacement=True)
        z = self.noise_prior().sample((rows,)).to(self.class_probs)
        return y, z, self.generate(y, z)

    def _of_label_discriminator(self, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
        x, y, unlabeled = self._three(batch)
        rows = len(unlabeled)
        with torch.no_grad():
            labels, _, made = self._pairs(rows)
            guessed = unlabeled[: round(self.options.pseudo_labels * rows)]
            again = round(self.options.generated_pairs * rows)
            labeled = max(1, rows - len(guessed) - again)
            real = torch.cat([x[:labeled], guessed, made[:again]])
            classes = torch.cat([y[:labeled], self.classifier(guessed).argmax(1), labels[:again]])
        of_real, of_made = self._judge(real, classes), self._judge(made, labels)
        return discriminator_loss(of_real, of_made), discriminator_values(of_real, of_made)

    def _of_style_discriminator(self, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
        unlabeled = self._three(batch)[2]
        assert self.style_discriminator is not None and self.inference is not None
        with torch.no_grad():
            _, z, made = self._pairs(len(unlabeled))
            style = self.inference(unlabeled)
        of_real, of_made = self.style_discriminator(unlabeled, style), self.style_discriminator(made, z)
        return discriminator_loss(of_real, of_made), discriminator_values(of_real, of_made)

    def _of_inference(self, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """I makes its pairs look generated, and finds the styles of generated samples."""
        unlabeled = self._three(batch)[2]
        assert self.style_discriminator is not None and self.inference is not None
        with torch.no_grad():
            _, z, made = self._pairs(len(unlabeled))
        fooling = generator_loss(-self.style_discriminator(unlabeled, self.inference(unlabeled)))
        style = style_reconstruction(z, self.inference(made))
        return fooling + self.weight("style") * style, {"R_z": style}

    def _of_structured(self, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
        y, z, made = self._pairs(len(self._three(batch)[2]))
        label = cross_entropy(self.classifier(made), y)
        loss = generator_loss(self._judge(made, y), self.loss) + self.weight("label") * label
        if self.style_discriminator is None or self.inference is None:
            return loss, {"R_y": label}
        style = style_reconstruction(z, self.inference(made))
        fooling = generator_loss(self.style_discriminator(made, z), self.loss)
        return loss + fooling + self.weight("style") * style, {"R_y": label, "R_z": style}

    def _of_classifier(self, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
        x, y, unlabeled = self._three(batch)
        labeled = cross_entropy(self.classifier(x), y)
        logits = self.classifier(unlabeled)
        terms, entropy = self._unlabeled_terms(logits)
        loss, values = labeled + terms, {"labeled": labeled, "entropy": entropy}
        if (weight := self.weight("generated")) > 0.0:
            with torch.no_grad():
                labels, _, made = self._pairs(len(unlabeled))
            loss = loss + weight * cross_entropy(self.classifier(made), labels)
        if (weight := self.weight("consistency")) > 0.0:
            distance = (logits.softmax(1) - self.classifier(unlabeled).softmax(1)).square().sum(1).mean()
            loss = loss + weight * distance
        return loss, values

    def _unlabeled_terms(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Entropy and balance with their weights, and the entropy."""
        log_probs = logits.log_softmax(1)
        entropy = -(log_probs.exp() * log_probs).sum(1).mean()
        balance = -log_probs.exp().mean(0).clamp_min(1e-12).log().mean()
        return self.weight("entropy") * entropy + self.weight("balance") * balance, entropy


def style_reconstruction(z: Tensor, found: Tensor) -> Tensor:
    """``0.5 E ||z - found||²`` over rows: a Gaussian's negative log density of unit variance, up to a constant."""
    return 0.5 * (z - found).square().sum(1).mean()


class _Decay:
    """``0.995 ** max(0, epoch - start)``."""

    def __init__(self, start: int) -> None:
        self.start = start

    def __call__(self, epoch: int) -> float:
        return 0.995 ** max(0, epoch - self.start)
