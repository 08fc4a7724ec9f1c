"""Where the numbers of a training run go: TensorBoard, MLflow, Weights & Biases, or an object of your own."""

from pyrobnn.training.trackers.base import FunctionTracker, Tracker
from pyrobnn.training.trackers.mlflow import MLflowTracker
from pyrobnn.training.trackers.tensorboard import TensorBoardTracker
from pyrobnn.training.trackers.wandb import WandbTracker

__all__ = ["FunctionTracker", "MLflowTracker", "TensorBoardTracker", "Tracker", "WandbTracker"]
