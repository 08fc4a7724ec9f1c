"""A ``LightningModule`` of a model and its guide, for people who have a Trainer (extra ``lightning``)."""

from pyrobnn.lightning.module import BayesianModule

__all__ = ["BayesianModule"]
