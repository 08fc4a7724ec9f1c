"""Models, posteriors and inputs that the tests of export share."""

from __future__ import annotations

import pyro.distributions as dist
import torch
from torch import Tensor, nn

import pyrobnn as pb


def rows(count: int, columns: int = 6, seed: int = 0) -> Tensor:
    """Normal inputs."""
    return torch.randn(count, columns, generator=torch.Generator().manual_seed(seed))


def perceptron(outputs: int) -> nn.Sequential:
    """One hidden layer."""
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, outputs))


def classifier() -> tuple[pb.SupervisedModel, pb.guides.MeanField]:
    """Three classes, weights that differ between draws."""
    model = pb.SupervisedModel(perceptron(3), pb.likelihoods.Categorical(), num_data=20)
    return model, pb.guides.MeanField(model, init_scale=0.3)


def regression() -> tuple[pb.SupervisedModel, pb.guides.MeanField]:
    """A regression whose noise is a latent site."""
    model = pb.SupervisedModel(perceptron(1), pb.likelihoods.Normal(dist.LogNormal(0.0, 1.0)), num_data=20)
    return model, pb.guides.MeanField(model, init_scale=0.3)


def laplace(
    likelihood: pb.likelihoods.Likelihood, targets: Tensor, outputs: int, structure: str
) -> tuple[pb.SupervisedModel, pb.guides.Laplace]:
    """A Laplace approximation fitted to twenty rows."""
    model = pb.SupervisedModel(perceptron(outputs), likelihood, num_data=20)
    return model, pb.guides.Laplace(model, structure=structure).fit(model, [(rows(20), targets)])  # type: ignore[arg-type]


class Tagger(nn.Module):
    """Attention over tokens with padding, pooled."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.embedding, self.norm = nn.Embedding(20, 8), nn.LayerNorm(8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        hidden = self.norm(self.embedding(ids))
        hidden = hidden + self.attention(hidden, hidden, hidden, key_padding_mask=~mask, need_weights=False)[0]
        weight = mask.unsqueeze(-1).to(hidden)
        return self.head((hidden * weight).sum(1) / weight.sum(1))


def tokens(count: int, length: int = 5) -> dict[str, Tensor]:
    """Sequences of tokens and their masks."""
    generator = torch.Generator().manual_seed(count)
    lengths = torch.randint(1, length + 1, (count, 1), generator=generator)
    return {"ids": torch.randint(20, (count, length), generator=generator), "mask": torch.arange(length) < lengths}
