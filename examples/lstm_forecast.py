"""Forecasts by an LSTM, twelve steps ahead, each with an interval.

What is learned: the next 12 values of a chaotic series (Mackey-Glass) from the last 24, measured with noise. The
likelihood has one noise scale for each of the 12 steps, since what is farther ahead is less certain. The last part of
the series is the test set; the part before it is for validation, on which each method chooses its number of epochs.

    python examples/lstm_forecast.py

The baselines are the same LSTM trained by plain torch with the same likelihood, and scikit-learn's ridge regression on
the last 24 values, with the standard deviations of its residuals. See docs/examples.md for the numbers.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import numpy as np
import torch
from sklearn.linear_model import Ridge
from torch import Tensor, nn
from torch.distributions import Normal
from torch.utils.data import DataLoader, TensorDataset

import pyrobnn as pb

PAST, AHEAD = 24, 12
EPOCHS, LEARNING_RATE = (15, 40), 5e-3  # candidates of the number of epochs

Forecast = tuple[Tensor, Tensor, Tensor, Callable[[Tensor], Tensor]]  # mean, ends of the 90 % interval, log density


def mackey_glass(length: int, seed: int) -> Tensor:
    """The series at every third unit of time, in standard units, with noise of standard deviation 0.1."""
    generator = np.random.default_rng(seed)
    values = list(1.2 + 0.2 * generator.standard_normal(18))
    for _ in range(3 * (length + 100)):
        values.append(0.9 * values[-1] + 0.2 * values[-18] / (1 + values[-18] ** 10))
    series = np.array(values[-3 * length :: 3])
    standard = (series - series.mean()) / series.std()
    return torch.tensor(standard + 0.1 * generator.standard_normal(length), dtype=torch.float32)


class LSTM(nn.Module):
    """From the past [B, PAST, 1] to the means of the next values [B, AHEAD]."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(1, 24, batch_first=True)
        self.head = nn.Linear(24, AHEAD)

    def forward(self, x: Tensor) -> Tensor:
        """The last state decides."""
        return self.head(self.lstm(x)[0][:, -1])


def normal(mean: Tensor, std: Tensor) -> Forecast:
    """A forecast by one Normal."""
    law = Normal(mean, std)
    return mean, law.icdf(torch.tensor(0.05)), law.icdf(torch.tensor(0.95)), law.log_prob


def by_pyrobnn(x: Tensor, y: Tensor, x_new: Tensor, epochs: int, seed: int) -> Forecast:
    """A mean field over all weights of the LSTM."""
    torch.manual_seed(seed)
    data = TensorDataset(x, y)
    model = pb.SupervisedModel(LSTM(), pb.likelihoods.Normal(shape=(AHEAD,)), num_data=len(data))
    guide = pb.guides.MeanField(model)
    loader = DataLoader(data, batch_size=64, shuffle=True)
    pb.fit(model, guide, loader, epochs=epochs, lr=LEARNING_RATE, seed=seed, progress=False)
    found = pb.predict(model, guide, x_new, num_samples=50, seed=seed)
    return found.mean, *found.interval(0.9), found.log_prob


def by_torch(x: Tensor, y: Tensor, x_new: Tensor, epochs: int, seed: int) -> Forecast:
    """The same network, with a learned standard deviation for each step."""
    torch.manual_seed(seed)
    net, log_std = LSTM(), nn.Parameter(torch.zeros(AHEAD))
    optimizer = torch.optim.Adam([*net.parameters(), log_std], lr=LEARNING_RATE)
    for _ in range(epochs):
        for inputs, targets in DataLoader(TensorDataset(x, y), batch_size=64, shuffle=True):
            optimizer.zero_grad()
            (-Normal(net(inputs), log_std.exp()).log_prob(targets).mean()).backward()
            optimizer.step()
    with torch.no_grad():
        return normal(net(x_new), log_std.detach().exp())


def by_ridge(x: Tensor, y: Tensor, x_new: Tensor, epochs: int, seed: int) -> Forecast:
    """Linear in the last values."""
    ridge = Ridge().fit(x.squeeze(-1).numpy(), y.numpy())
    std = torch.as_tensor(ridge.predict(x.squeeze(-1).numpy())).sub(y).std(0)
    return normal(torch.as_tensor(ridge.predict(x_new.squeeze(-1).numpy())), std)


def main(seed: int = 0, smoke: bool = False) -> None:
    """Trains each method for the number of epochs that validation prefers, and prints its scores (NLL: per value).

    Args:
        seed: Makes the series, the starting weights and the draws.
        smoke: One epoch, to see that the script runs.
    """
    windows = mackey_glass(1000, seed).unfold(0, PAST + AHEAD, 1)
    x, y = windows[:, :PAST].unsqueeze(-1), windows[:, PAST:]
    # Windows overlap, so between the parts PAST + AHEAD of them are left out.
    train, validation, test = slice(0, 450), slice(486, 636), slice(672, None)
    methods = {"pyrobnn, mean field": by_pyrobnn, "plain torch": by_torch, "ridge regression": by_ridge}
    for name, method in methods.items():
        candidates = (1,) if smoke else EPOCHS if method is not by_ridge else (0,)
        nlls = [-method(x[train], y[train], x[validation], e, seed)[3](y[validation]).mean() for e in candidates]
        epochs = candidates[int(torch.stack(nlls).argmin())]
        mean, low, high, log_prob = method(x[train], y[train], x[test], epochs, seed)
        scores = {
            "RMSE": pb.metrics.rmse(mean, y[test]),
            "of the last step": pb.metrics.rmse(mean[:, -1], y[test][:, -1]),
            "NLL": -log_prob(y[test]).sum() / y[test].numel(),
            "coverage of 90 %": pb.metrics.interval_coverage(low, high, y[test]),
        }
        print(f"{name:21}" + "   ".join(f"{key} {value:.3f}" for key, value in scores.items()), f"  ({epochs} epochs)")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="forecasts by an LSTM, with intervals")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--smoke", action="store_true", help="one epoch, to see that it runs")
    main(**vars(parser.parse_args()))
