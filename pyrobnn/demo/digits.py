"""The demo's data and model: digits 0 to 7 are known, 8 and 9 are not.

The images are the 1,797 handwritten 8×8 digits of the UCI repository that come with scikit-learn (Alpaydin & Kaynak
1998). Pixels are standardized with the mean and the standard deviation of all training pixels, because the default
prior supposes inputs of unit variance.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

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
VALIDATION_SHARE = 0.15
"""Of what is not for testing."""


@dataclass(frozen=True)
class Digits:
    """Images ``[N, 8, 8]``, standardized, and labels ``[N]``.

    Attributes:
        train: Images and labels to learn from, of known classes.
        validation: Images and labels that options are chosen on, of known classes.
        test: Images and labels held out, of known classes.
        unknown: Images and labels of the classes that are never learned.
    """

    train: tuple[Tensor, Tensor]
    validation: tuple[Tensor, Tensor]
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
    rest, test = _split(is_known.nonzero().flatten(), labels, TEST_SHARE, seed)
    train, validation = _split(rest, labels, VALIDATION_SHARE, seed)
    images = (images - images[train].mean()) / images[train].std()
    return Digits(
        train=(images[train], labels[train]),
        validation=(images[validation], labels[validation]),
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
    """The network as a Pyro model of ``num_data`` labels, with the default prior."""
    return SupervisedModel(network(), likelihoods.Categorical(), num_data=num_data)


def _split(indices: Tensor, labels: Tensor, share: float, seed: int) -> tuple[Tensor, Tensor]:
    """The indices without and with a share that is held out, the same of each class."""
    kept, held_out = train_test_split(indices.numpy(), test_size=share, random_state=seed, stratify=labels[indices])
    return torch.from_numpy(kept), torch.from_numpy(held_out)
