"""Growing data: labels arrive in portions, and the posterior is fitted on from where it is.

What is learned: the digits of scikit-learn, from 100, 200, 400 and 800 labels. When data are added, say so
(``model.num_data``) and call ``fit`` again with all of them: the guide goes on from its last state. Beside it, the same
posterior begun anew each time with as many epochs, a plain torch network trained on in the same way, and logistic
regression, which is fitted to the end each time.

    python examples/growing_data.py

What to expect: going on is better than beginning anew for as many epochs, and level with plain torch. With 100 labels
logistic regression is ahead. See docs/examples.md for the numbers.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import pyrobnn as pb

SIZES = (100, 200, 400, 800)
EPOCHS, LEARNING_RATE = 20, 5e-3


def network() -> nn.Module:
    """A perceptron with one hidden layer."""
    return nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))


def begun(seed: int, num_data: int) -> tuple[pb.SupervisedModel, pb.guides.Guide]:
    """An untrained model and its posterior."""
    torch.manual_seed(seed)
    model = pb.SupervisedModel(network(), pb.likelihoods.Categorical(), num_data=num_data)
    return model, pb.guides.MeanField(model)


def train_plain(net: nn.Module, loader: DataLoader, epochs: int) -> None:
    """Trains a network on, in plain torch."""
    optimizer = torch.optim.Adam(net.parameters(), lr=LEARNING_RATE)
    for _ in range(epochs):
        for x, y in loader:
            optimizer.zero_grad()
            F.cross_entropy(net(x), y).backward()
            optimizer.step()


def main(seed: int = 0, smoke: bool = False) -> None:
    """Lets the data grow, and prints accuracy and NLL of test images after each portion.

    Args:
        seed: Chooses the order of the images, the starting weights and the draws.
        smoke: One epoch, to see that the script runs.
    """
    pixels, classes = load_digits(return_X_y=True)
    order = torch.randperm(len(classes), generator=torch.Generator().manual_seed(seed))
    images = (torch.as_tensor(pixels, dtype=torch.float32) / 16)[order]
    labels = torch.as_tensor(classes)[order]
    test_images, test_labels = images[SIZES[-1] :], labels[SIZES[-1] :]

    def show(size: int, name: str, probs: Tensor) -> None:
        accuracy, nll = pb.metrics.accuracy(probs, test_labels), pb.metrics.nll(probs, test_labels)
        print(f"{size:4} labels   {name:28} accuracy {accuracy:.3f}   NLL {nll:.3f}")

    growing, guide = begun(seed, SIZES[0])
    torch.manual_seed(seed)
    plain = network()
    epochs = 1 if smoke else EPOCHS
    options: dict[str, Any] = {"epochs": epochs, "lr": LEARNING_RATE, "seed": seed, "progress": False}
    for size in SIZES:
        data = TensorDataset(images[:size], labels[:size])
        loader = DataLoader(data, batch_size=50, shuffle=True)

        growing.num_data = size  # the only thing to change: how much the data weigh against the prior
        pb.fit(growing, guide, loader, **options)
        show(size, "pyrobnn, going on", pb.predict(growing, guide, test_images, seed=seed).mean)

        anew, guide_anew = begun(seed, size)
        pb.fit(anew, guide_anew, loader, **options)
        show(size, "pyrobnn, begun anew", pb.predict(anew, guide_anew, test_images, seed=seed).mean)

        train_plain(plain, loader, epochs)
        with torch.no_grad():
            show(size, "plain torch, going on", plain(test_images).softmax(-1))

        regression = LogisticRegression(max_iter=1000).fit(images[:size].numpy(), labels[:size].numpy())
        show(size, "scikit-learn, logistic", torch.as_tensor(regression.predict_proba(test_images.numpy())))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="labels that arrive in portions")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--smoke", action="store_true", help="one epoch, to see that it runs")
    main(**vars(parser.parse_args()))
