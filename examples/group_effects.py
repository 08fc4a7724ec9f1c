"""Your own Pyro model with a network inside: measurements in groups, each with an effect of its own.

What is learned: a nonlinear function shared by all groups (a Bayesian network), the effect of each group, how widely
effects scatter, and the noise. Groups with few measurements borrow from the others; for a group that was never seen the
model knows how far off it may be. Data are synthetic, so the truth is known.

    python examples/group_effects.py

The baseline is scikit-learn's gradient boosting with the group as a category, and ridge regression on features and
indicators of groups. What to expect: with 6 measurements a group the hierarchical model has the smallest error, and
intervals that hold for known and new groups. See docs/examples.md for the numbers.
"""

from __future__ import annotations

import argparse

import pyro
import pyro.distributions as dist
import torch
from pyro.nn import PyroModule
from sklearn.compose import make_column_transformer
from sklearn.ensemble import HistGradientBoostingRegressor
from sklearn.linear_model import Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import pyrobnn as pb

KNOWN, NEW, EACH, FEATURES = 40, 20, 6, 3  # groups in the training data, groups that are not, rows of each


class GroupedRegression(PyroModule):
    """y = f(features) + effect[group] + noise, with a network f and effects ~ Normal(0, spread)."""

    def __init__(self, num_groups: int, num_data: int) -> None:
        super().__init__()
        net = nn.Sequential(nn.Linear(FEATURES, 20), nn.Tanh(), nn.Linear(20, 1))
        self.net = pb.bayesianize(net, dist.Normal(0.0, 1.0))
        self.num_groups, self.num_data = num_groups, num_data

    def forward(self, x: tuple[Tensor, Tensor], y: Tensor | None = None) -> Tensor:
        """The mean of each row, [B]; x are features [B, D] and groups [B]."""
        features, group = x
        spread = pyro.sample("spread", dist.HalfNormal(2.0))
        noise = pyro.sample("noise", dist.LogNormal(-1.0, 1.0))
        with pyro.plate("groups", self.num_groups):
            effect = pyro.sample("effect", dist.Normal(0.0, spread))
        mean = self.net(features).squeeze(-1) + effect[group]
        size = len(mean) if y is None else self.num_data  # a batch of B rows counts num_data / B times
        with pyro.plate("data", size, subsample=torch.arange(len(mean))):
            pyro.sample("y", dist.Normal(mean, noise), obs=y)
        return mean


def measure(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Features, groups and targets; groups from KNOWN on are those that training does not see."""
    generator = torch.Generator().manual_seed(seed)
    group = torch.arange(KNOWN + NEW).repeat_interleave(2 * EACH)
    features = torch.randn(len(group), FEATURES, generator=generator)
    effect = 1.0 * torch.randn(KNOWN + NEW, generator=generator)
    shared = torch.sin(2 * features[:, 0]) + features[:, 1] * features[:, 2]
    return features, group, shared + effect[group] + 0.3 * torch.randn(len(group), generator=generator)


def inputs_and_targets(batch: tuple[Tensor, Tensor, Tensor]) -> tuple[tuple[Tensor, Tensor], Tensor]:
    """What a batch of three tensors means; ``fit`` would take the third as weights of the rows."""
    features, group, y = batch
    return (features, group), y


def main(seed: int = 0, smoke: bool = False) -> None:
    """Fits the model, and prints its scores on new rows of known groups and on new groups beside the baselines'.

    Args:
        seed: Makes the data and the draws.
        smoke: Two epochs and few draws, to see that the script runs.
    """
    features, group, y = measure(seed)
    known = group < KNOWN
    is_train = known & (torch.arange(len(y)) % 2 == 0)
    parts = {"known groups": known & ~is_train, "new groups": ~known}

    pyro.set_rng_seed(seed)
    epochs = 2 if smoke else 500
    rows = TensorDataset(features[is_train], group[is_train], y[is_train])
    model = GroupedRegression(KNOWN + NEW, len(rows))
    guide = pb.guides.MeanField(model, example=((features[:2], group[:2]), y[:2]))
    loader = DataLoader(rows, batch_size=60, shuffle=True)
    pb.fit(model, guide, loader, batch=inputs_and_targets, epochs=epochs, lr=1e-2, seed=seed, progress=False)
    spread = guide.sample(1000)["spread"]
    print(f"spread of the groups' effects: {spread.mean():.2f} ± {spread.std():.2f} (the data were made with 1)")

    table = torch.cat([features, group.unsqueeze(1)], dim=1).numpy()
    boosting = HistGradientBoostingRegressor(categorical_features=[FEATURES], random_state=seed)
    indicators = make_column_transformer(
        (OneHotEncoder(handle_unknown="ignore"), [FEATURES]), remainder="passthrough", sparse_threshold=0
    )
    baselines = {"gradient boosting": boosting, "ridge regression": make_pipeline(indicators, Ridge())}
    for baseline in baselines.values():
        baseline.fit(table[is_train.numpy()], y[is_train].numpy())

    for part, chosen in parts.items():
        predictive = pb.Predictive(model, guide=guide, num_samples=20 if smoke else 500, return_sites=["_RETURN", "y"])
        drawn = predictive((features[chosen], group[chosen]))
        low, high = drawn["y"].quantile(torch.tensor([0.05, 0.95]), dim=0)
        rmse = float(pb.metrics.rmse(drawn["_RETURN"].mean(0), y[chosen]))
        coverage = float(pb.metrics.interval_coverage(low, high, y[chosen]))
        print(f"{part:14}pyrobnn            RMSE {rmse:.3f}   coverage of 90 % {coverage:.3f}")
        for name, baseline in baselines.items():
            predicted = torch.as_tensor(baseline.predict(table[chosen.numpy()]), dtype=torch.float32)
            print(f"{part:14}{name:19}RMSE {float(pb.metrics.rmse(predicted, y[chosen])):.3f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="a Pyro model with a network and effects of groups")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--smoke", action="store_true", help="two epochs, to see that it runs")
    main(**vars(parser.parse_args()))
