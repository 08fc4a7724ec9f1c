"""A discriminator that is always certain, or says the same of all inputs, is noticed while the game is played."""

from __future__ import annotations

import warnings

from torch import Tensor

from pyrobnn.core.arguments import check_number, check_positive_int
from pyrobnn.core.explanations import explained
from pyrobnn.training.game.history import GameHistory

__all__ = ["DiscriminatorWatch", "discriminator_values"]

REAL, FAKE, SPREAD = "real", "fake", "spread"
_LEAST_SPREAD = 1e-6  # of logits, below which they are one number


def discriminator_values(real: Tensor, fake: Tensor) -> dict[str, Tensor]:
    """What :class:`DiscriminatorWatch` reads, for the loss of a discriminator to return beside its value.

    Args:
        real: Its logits of data.
        fake: Its logits of generated samples.

    Returns:
        The mean probabilities of being real that it gives to either, ``"real"`` and ``"fake"``, and the standard
        deviation of all logits, ``"spread"``.
    """
    real, fake = real.detach().flatten(), fake.detach().flatten()
    both = real.new_empty(len(real) + len(fake))
    both[: len(real)], both[len(real) :] = real, fake
    spread = both.std(correction=0)
    return {REAL: real.sigmoid().mean(), FAKE: fake.sigmoid().mean(), SPREAD: spread}


@explained
class DiscriminatorWatch:
    """A callback of :meth:`~pyrobnn.training.Game.play` that warns, once, when a discriminator has collapsed.

    It has won if it gives data a probability near one of being real and generated samples one near zero, several epochs
    in a row: a generator then gets no gradient from the minimax loss, and one of no use from any other. It is dead if
    its logits are all the same number.

    Args:
        phase: The name of the discriminator's phase, whose loss reports :func:`discriminator_values`.
        margin: How near.
        patience: Epochs in a row.

    Raises:
        ValueError: If a number is outside its range.
    """

    def __init__(self, phase: str = "D", *, margin: float = 0.01, patience: int = 5) -> None:
        if not isinstance(phase, str) or not phase:
            raise TypeError(f"phase: expected the name of a phase, got {phase!r}.")
        check_number("margin", margin, 0.0, 0.5)
        check_positive_int("patience", patience)
        self.phase, self.margin, self.patience = phase, margin, patience
        self._has_warned = False

    def __call__(self, history: GameHistory) -> None:
        """Reads the last epochs.

        Raises:
            ValueError: If the phase reports no such values.

        Warns:
            UserWarning: If the discriminator has collapsed.
        """
        names = [f"{self.phase}.{name}" for name in (REAL, FAKE, SPREAD)]
        if missing := [name for name in names if name not in history.terms]:
            raise ValueError(
                f"phase: the history has no {missing[0]!r}; let the loss of {self.phase!r} return "
                "(loss, discriminator_values(real, fake))."
            )
        real, fake, spread = (history.terms[name][-self.patience :] for name in names)
        if self._has_warned or len(real) < self.patience:
            return
        said = f"real {real[-1]:.4g}, fake {fake[-1]:.4g}, spread of logits {spread[-1]:.3g}"
        if max(spread) < _LEAST_SPREAD:
            self._warn(f"gives all inputs the same logit ({said}); lower its learning rate, or check its network")
        elif min(real) > 1.0 - self.margin and max(fake) < self.margin:
            self._warn(
                f"tells all generated samples from data ({said}), so that the generator learns nothing; weaken it "
                "(lower lr, spectral norm, gradient penalty, noise on its inputs) or use the non-saturating loss"
            )

    def _warn(self, what: str) -> None:
        self._has_warned = True
        warnings.warn(
            f"the discriminator of the phase {self.phase!r} has collapsed: for {self.patience} epochs it {what}.",
            stacklevel=5,  # the call of play()
        )
