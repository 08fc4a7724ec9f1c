"""Training: one loop over (model, guide, loader)."""

from pyrobnn.training.fit import fit
from pyrobnn.training.history import Callback, History
from pyrobnn.training.length import default_epochs
from pyrobnn.training.optimizers import make_optimizer
from pyrobnn.training.players import Player
from pyrobnn.training.run import train_step
from pyrobnn.training.snapshot import Snapshots

__all__ = ["Callback", "History", "Player", "Snapshots", "default_epochs", "fit", "make_optimizer", "train_step"]
