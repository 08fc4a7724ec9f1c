"""The demo's data and model: digits 0 to 7 are known, 8 and 9 are not.

The images are the 1,797 handwritten 8×8 digits of the UCI repository that come with scikit-learn (Alpaydin & Kaynak
1998). Pixels are standardized with the mean and the standard deviation of all training pixels, because fan-in scaled
priors suppose inputs of unit variance.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

import pyro.distributions as dist
import sklearn.datasets
import torch
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from pyrobnn.model import likelihoods
from pyrobnn.model.supervised import SupervisedModel

__all__ = ["NUM_KNOWN", "Digits", "load_digits", "make_model", "network"]

NUM_KNOWN = 8
"""Digits below this one are the known classes."""
BATCH_SIZE = 32
TEST_SHARE = 0.25


@dataclass(frozen=True)
class Digits:
    """Images ``[N, 8, 8]``, standardized, and labels ``[N]``.

    Attributes:
        train: Images and labels to learn from, of known classes.
        test: Images and labels held out, of known classes.
        unknown: Images and labels of the classes that are never learned.
    """

    train: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]
    unknown: tuple[Tensor, Tensor]

    def loader(self) -> DataLoader[tuple[Tensor, ...]]:
        """Shuffled batches of the training data."""
        return DataLoader(TensorDataset(*self.train), batch_size=BATCH_SIZE, shuffle=True)


def load_digits(seed: int = 0) -> Digits:
    """The digits, split by ``seed`` with equal shares of each class."""
    raw = sklearn.datasets.load_digits()
    images, labels = torch.from_numpy(raw.images).float(), torch.from_numpy(raw.target).long()
    is_known = labels < NUM_KNOWN
    train, test = train_test_split(
        is_known.nonzero().flatten().numpy(),
        test_size=TEST_SHARE,
        random_state=seed,
        stratify=labels[is_known].numpy(),
    )
    images = (images - images[train].mean()) / images[train].std()
    return Digits(
        train=(images[train], labels[train]),
        test=(images[test], labels[test]),
        unknown=(images[~is_known], labels[~is_known]),
    )


def network() -> nn.Sequential:
    """The plain PyTorch network: two small convolutions and a linear readout, 1,768 parameters."""
    layers: OrderedDict[str, nn.Module] = OrderedDict(
        channel=nn.Unflatten(1, (1, 8)),
        conv1=nn.Conv2d(1, 8, 3, padding=1),
        relu1=nn.ReLU(),
        pool1=nn.MaxPool2d(2),
        conv2=nn.Conv2d(8, 16, 3, padding=1),
        relu2=nn.ReLU(),
        pool2=nn.MaxPool2d(2),
        flatten=nn.Flatten(),
        readout=nn.Linear(64, NUM_KNOWN),
    )
    return nn.Sequential(layers)


def make_model(num_data: int) -> SupervisedModel:
    """The network as a Pyro model of ``num_data`` labels.

    Digits are clear, so the prior should not call confidence improbable: networks drawn from it give 87 % of the
    images a class of probability above 0.9; networks drawn from He's narrower prior, 25 %.
    """
    return SupervisedModel(network(), likelihoods.Categorical(), dist.Normal(0.0, 0.5), num_data=num_data)
