"""Image classification: a mean field and a deep ensemble beside the same network trained by plain torch.

What is learned: the digits 0 to 7 from 300 images. The digits 8 and 9 are kept from all of them, to see whether
uncertainty is larger there. All train with the same batches, learning rate and number of epochs; the number of epochs
is chosen for each on validation images.

    python examples/image_classification.py

What to expect: accuracy is level, and plain training is the best calibrated. What an ensemble adds is the detection of
unknown digits and of errors. See docs/examples.md for the numbers.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import pyrobnn as pb

EPOCHS = (20, 60)  # the candidates
Method = Callable[[TensorDataset, int, int], Callable[[Tensor], tuple[Tensor, Tensor]]]


def network(seed: int) -> nn.Module:
    """A small convolutional network of 8 classes."""
    torch.manual_seed(seed)
    return nn.Sequential(
        *(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(128, 8)),
    )


def plain_torch(data: TensorDataset, epochs: int, seed: int) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """A torch loop; returns a function from images to class probabilities and their entropy."""
    net = network(seed)
    optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
    for _ in range(epochs):
        for x, y in DataLoader(data, batch_size=50, shuffle=True):
            optimizer.zero_grad()
            F.cross_entropy(net(x), y).backward()
            optimizer.step()

    @torch.no_grad()
    def predict(x: Tensor) -> tuple[Tensor, Tensor]:
        probs = net(x).softmax(-1)
        return probs, pb.metrics.entropy(probs)

    return predict


def bayesian(family: Callable[[pb.SupervisedModel], pb.guides.Guide]) -> Method:
    """The same with a posterior of that family."""

    def train(data: TensorDataset, epochs: int, seed: int) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
        model = pb.SupervisedModel(network(seed), pb.likelihoods.Categorical(), num_data=len(data))
        guide = family(model)
        loader = DataLoader(data, batch_size=50, shuffle=True)
        pb.fit(model, guide, loader, epochs=epochs, lr=3e-3, seed=seed, progress=False)

        def predict(x: Tensor) -> tuple[Tensor, Tensor]:
            found = pb.predict(model, guide, x, num_samples=50, seed=seed)
            return found.mean, found.total

        return predict

    return train


METHODS: dict[str, Method] = {
    "plain torch": plain_torch,
    "pyrobnn, MAP": bayesian(pb.guides.MAP),
    "pyrobnn, mean field": bayesian(pb.guides.MeanField),
    "pyrobnn, ensemble of 5": bayesian(lambda model: pb.guides.DeltaMixture(model, num_members=5)),
}


def main(seed: int = 0, smoke: bool = False) -> None:
    """Trains each method for the number of epochs that validation images prefer, and prints its scores.

    Args:
        seed: Chooses the images of each part, the starting weights and the draws.
        smoke: One epoch, to see that the script runs.
    """
    pixels, classes = load_digits(return_X_y=True)
    images = torch.as_tensor(pixels, dtype=torch.float32).reshape(-1, 1, 8, 8) / 16
    labels = torch.as_tensor(classes)
    unknown, images, labels = images[labels > 7], images[labels < 8], labels[labels < 8]
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    train, validation, test = order[:300], order[300:600], order[600:]
    data = TensorDataset(images[train], labels[train])

    for name, method in METHODS.items():
        trained = []
        for epochs in (1,) if smoke else EPOCHS:
            predict = method(data, epochs, seed)
            nll = float(pb.metrics.nll(predict(images[validation])[0], labels[validation]))
            trained.append((nll, epochs, predict))
        _, epochs, predict = min(trained, key=lambda entry: entry[0])

        probs, uncertainty = predict(images[test])
        wrong = probs.argmax(-1) != labels[test]
        scores = {
            "accuracy": float(pb.metrics.accuracy(probs, labels[test])),
            "NLL": float(pb.metrics.nll(probs, labels[test])),
            "ECE": float(pb.metrics.expected_calibration_error(probs, labels[test])),
            "AUROC of unknown digits": float(pb.metrics.auroc(uncertainty, predict(unknown)[1])),
            "of errors": float(pb.metrics.auroc(uncertainty[~wrong], uncertainty[wrong])),
        }
        row = "   ".join(f"{key} {value:.3f}" for key, value in scores.items())
        print(f"{name:24}{row}   ({epochs} epochs)")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="image classification beside plain torch")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--smoke", action="store_true", help="one epoch, to see that it runs")
    main(**vars(parser.parse_args()))
