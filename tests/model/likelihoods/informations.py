"""Fisher information in closed form against scores of targets that are drawn."""

from __future__ import annotations

import torch

from pyrobnn.model.likelihoods import Likelihood
from tests.conformance.monte_carlo import Z, z_of_mean

__all__ = ["assert_information"]


def assert_information(likelihood: Likelihood, outputs: torch.Tensor, draws: int = 4000) -> None:
    """The mean outer product of ``draws`` scores of each datum, within z = 5; blocks placed by their index."""
    information = likelihood.fisher_information(outputs)
    assert information.diagonal is not None or information.scores is not None
    size = outputs[0].numel()
    found = outputs.new_zeros(len(outputs), size, size)
    for t, index in enumerate(information.index):
        found[:, index.unsqueeze(-1), index] = information.matrices()[:, t]
    torch.manual_seed(0)
    leaf = outputs.expand(draws, *outputs.shape).clone().requires_grad_()
    flat = leaf.flatten(0, 1)
    observation = likelihood(flat)
    log_prob = observation.log_prob(observation.sample()).sum()
    scores = torch.autograd.grad(log_prob, leaf)[0].flatten(2)
    assert z_of_mean(scores.unsqueeze(-1) * scores.unsqueeze(-2), found, rounding=1e-4) < Z


def outputs_of(numbers: int, rows: int = 3) -> torch.Tensor:
    return torch.randn(rows, numbers, generator=torch.Generator().manual_seed(8), dtype=torch.float64)
