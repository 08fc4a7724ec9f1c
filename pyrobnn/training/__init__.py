"""Training: one loop over (model, guide, loader), and one for games of several players."""

from pyrobnn.training import trackers
from pyrobnn.training.fit import fit
from pyrobnn.training.game import DiscriminatorWatch, Game, GameHistory, GamePlayer, Phase, discriminator_values
from pyrobnn.training.gradient_step import train_step
from pyrobnn.training.history import Callback, History
from pyrobnn.training.length import default_epochs
from pyrobnn.training.members import fit_members
from pyrobnn.training.optimizers import make_optimizer
from pyrobnn.training.players import Player
from pyrobnn.training.seeds import run_seeds
from pyrobnn.training.snapshot import Snapshots

__all__ = [
    "Callback",
    "DiscriminatorWatch",
    "Game",
    "GameHistory",
    "GamePlayer",
    "History",
    "Phase",
    "Player",
    "Snapshots",
    "default_epochs",
    "discriminator_values",
    "fit",
    "fit_members",
    "make_optimizer",
    "run_seeds",
    "trackers",
    "train_step",
]
