"""Games: several players with objectives of their own, as in generative adversarial networks; the loop beside fit."""

from pyrobnn.training.game.discriminators import DiscriminatorWatch, discriminator_values
from pyrobnn.training.game.game import Game
from pyrobnn.training.game.history import GameHistory
from pyrobnn.training.game.phase import Phase
from pyrobnn.training.game.player import GamePlayer

__all__ = ["DiscriminatorWatch", "Game", "GameHistory", "GamePlayer", "Phase", "discriminator_values"]
