"""A transformer on sequences of different length: padding, its mask, and a posterior over all weights.

What is learned: which of the letters A and B comes first in a string of 5 to 20 letters; a tenth of the training labels
are wrong. A batch is padded to its longest string, and the network is given the mask of the padding as a second
argument: inputs are a tuple, which is passed on as the network's arguments. The posterior of a deep network is best
begun at a trained one: its means start at the weights that plain training found.

    python examples/padded_transformer.py

The baselines are the same transformer trained by plain torch, for as many epochs as validation strings prefer, and
scikit-learn's logistic regression on counts of letters, which cannot know the order. What to expect: both
transformers are level. See docs/examples.md for the numbers.
"""

from __future__ import annotations

import argparse
import copy
from typing import Any

import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader

import pyrobnn as pb

A, B, NUM_LETTERS, PADDING, LONGEST = 0, 1, 8, 8, 20
Example = tuple[Tensor, int]
Padded = tuple[tuple[Tensor, Tensor], Tensor]


def strings(count: int, wrong: float, seed: int) -> list[Example]:
    """Strings that hold both letters, and which came first; a share of the labels is wrong."""
    generator = torch.Generator().manual_seed(seed)
    made: list[Example] = []
    while len(made) < count:
        length = int(torch.randint(5, LONGEST + 1, (), generator=generator))
        letters = torch.randint(NUM_LETTERS, (length,), generator=generator)
        positions = [(letters == letter).nonzero() for letter in (A, B)]
        if all(len(found) for found in positions):
            flip = bool(torch.rand((), generator=generator) < wrong)
            made.append((letters, int((positions[0][0] < positions[1][0]) ^ flip)))
    return made


def padded(examples: list[Example]) -> Padded:
    """A batch ((letters, is_padding), labels), as long as its longest string; a DataLoader's collate_fn."""
    letters = pad_sequence([string for string, _ in examples], batch_first=True, padding_value=PADDING)
    return (letters, letters == PADDING), torch.tensor([label for _, label in examples])


class Transformer(nn.Module):
    """Two layers of attention, then the mean over what is no padding."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.letters = nn.Embedding(NUM_LETTERS + 1, width, padding_idx=PADDING)
        self.positions = nn.Embedding(LONGEST, width)
        layer = nn.TransformerEncoderLayer(width, 4, 64, dropout=0.0, batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(width, 2)

    def forward(self, letters: Tensor, is_padding: Tensor) -> Tensor:
        """Logits [N, 2] from letters [N, length] and which of them are padding."""
        embedded = self.letters(letters) + self.positions.weight[: letters.shape[1]]
        encoded = self.encoder(embedded, src_key_padding_mask=is_padding)
        kept = (~is_padding).unsqueeze(-1)
        return self.head((encoded * kept).sum(1) / kept.sum(1))


def train_plain(net: nn.Module, loader: DataLoader, epochs: int) -> nn.Module:
    """Trains a network on, in plain torch."""
    optimizer = torch.optim.Adam(net.parameters(), lr=2e-3)
    for _ in range(epochs):
        for inputs, labels in loader:
            optimizer.zero_grad()
            F.cross_entropy(net(*inputs), labels).backward()
            optimizer.step()
    return net


def main(seed: int = 0, smoke: bool = False) -> None:
    """Trains all, prints their scores, and shows that padding has no influence.

    Args:
        seed: Makes the strings, the starting weights and the draws.
        smoke: A hundred strings and one epoch, to see that the script runs.
    """
    count = 100 if smoke else 1000
    train, test = strings(count, 0.1, 3 * seed), strings(count, 0.0, 3 * seed + 1)
    validation = [padded(strings(count, 0.1, 3 * seed + 2))]  # a loader of one batch
    loader: DataLoader[Any] = DataLoader(train, 50, shuffle=True, collate_fn=padded)  # type: ignore[arg-type]
    inputs, labels = padded(test)
    epochs = 1 if smoke else 15

    def show(name: str, probs: Tensor) -> None:
        wrong = probs.argmax(-1) != labels
        uncertainty = pb.metrics.entropy(probs)
        print(
            f"{name:28}accuracy {pb.metrics.accuracy(probs, labels):.3f}   NLL {pb.metrics.nll(probs, labels):.3f}   "
            f"AUROC of errors {pb.metrics.auroc(uncertainty[~wrong], uncertainty[wrong]):.3f}"
        )

    torch.manual_seed(seed)
    net = train_plain(Transformer(), loader, epochs)
    model = pb.SupervisedModel(net, pb.likelihoods.Categorical(), num_data=len(train))
    guide = pb.guides.MeanField(model)  # its means begin at the weights that the network has
    options: dict[str, Any] = {"lr": 2e-3, "scale_lr": 1e-2, "seed": seed, "progress": False}
    pb.fit(model, guide, loader, epochs=epochs, validation=validation, patience=5, **options)  # keeps the best epoch
    ours = pb.predict(model, guide, inputs, num_samples=50, seed=seed)
    show("pyrobnn, mean field", ours.mean)

    # Plain training may stop where the posterior began, or go on as long: validation strings decide.
    candidates = [net, train_plain(copy.deepcopy(net), loader, epochs)]
    with torch.no_grad():
        ((known, targets),) = validation
        nlls = [F.cross_entropy(candidate(*known), targets) for candidate in candidates]
        chosen = int(torch.stack(nlls).argmin())
        show(f"plain torch, {epochs * (1 + chosen)} epochs", candidates[chosen](*inputs).softmax(-1))

    counts = [torch.stack([F.one_hot(string, NUM_LETTERS).sum(0) for string, _ in part]) for part in (train, test)]
    regression = LogisticRegression().fit(counts[0].numpy(), [label for _, label in train])
    show("logistic regression, counts", torch.as_tensor(regression.predict_proba(counts[1].numpy())))

    shortest = min(test, key=lambda example: len(example[0]))
    alone = pb.predict(model, guide, padded([shortest])[0], num_samples=50, seed=seed).mean[0]
    beside = pb.predict(model, guide, padded([shortest, max(test, key=lambda e: len(e[0]))])[0], 50, seed=seed).mean[0]
    print(f"probabilities of a short string: alone {alone.tolist()}, padded {beside.tolist()}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="a transformer on padded strings")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--smoke", action="store_true", help="one epoch, to see that it runs")
    main(**vars(parser.parse_args()))
