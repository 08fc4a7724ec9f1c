"""Double descent: the closed form, the peak at P = n, and networks of several widths."""

from __future__ import annotations

from typing import Any

import matplotlib.pyplot as plt
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

import pyrobnn as pb
from pyrobnn import guides
from pyrobnn.diagnostics.generalization import network_sweep, random_feature_sweep
from pyrobnn.diagnostics.generalization.double_descent import _least_squares

N, D = 60, 10


def data(count: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, D, generator=generator)
    weight = torch.randn(D, 1, generator=torch.Generator().manual_seed(9)) / D**0.5
    return x, x @ weight + 0.3 * torch.randn(count, 1, generator=generator)


TRAIN, TEST = data(N, 0), data(500, 1)


def test_the_peak_is_where_parameters_are_as_many_as_data() -> None:
    found = random_feature_sweep(TRAIN, TEST, [6, 15, 30, 45, 60, 75, 120, 300, 1200], seed=0)
    assert found.num_parameters[found.peak] == N == found.num_data
    assert min(found.peak_ratios) >= 3.0
    train = found.train_error.median(1).values
    assert bool((train.diff()[:4] < 0).all())
    assert float(found.train_error[5:].max()) < 1e-10  # interpolates from P = n on
    assert float(found.train_error[3].min()) > 1e-3
    ax = found.plot()
    assert ax.get_xlabel() == "parameters per datum"
    plt.close("all")
    lines = str(found).splitlines()
    assert len(lines) == 10
    assert lines[5].split()[:3] == ["60", "60", "1.00"]


def test_a_ridge_hides_the_peak() -> None:
    widths = [6, 30, 60, 120, 600]
    plain, ridged = (random_feature_sweep(TRAIN, TEST, widths, ridge=r, seed=0) for r in (0.0, 0.1))
    assert float(ridged.test_error[2].median()) < 0.1 * float(plain.test_error[2].median())
    assert ridged.peak == 0


def test_the_solution_is_that_of_the_pseudoinverse() -> None:
    generator = torch.Generator().manual_seed(2)
    y = torch.randn(8, 2, generator=generator, dtype=torch.float64)
    for width in (3, 20):
        features = torch.randn(8, width, generator=generator, dtype=torch.float64)
        torch.testing.assert_close(_least_squares(features, y, 0.0), torch.linalg.pinv(features) @ y)
        identity = torch.eye(width, dtype=torch.float64)
        ridged = torch.linalg.solve(features.T @ features + 0.5 * identity, features.T @ y)
        torch.testing.assert_close(_least_squares(features, y, 0.5), ridged)


def regression(width: int) -> tuple[nn.Module, guides.Guide]:
    net = nn.Sequential(nn.Linear(D, width), nn.ReLU(), nn.Linear(width, 1))
    model = pb.SupervisedModel(net, pb.likelihoods.Normal(0.3), dist.Normal(0.0, 1.0), num_data=N)
    return model, guides.MAP(model)


def test_networks_of_several_widths() -> None:
    options: dict[str, Any] = {"epochs": 60, "lr": 0.02, "repetitions": 2, "num_samples": 1, "seed": 0}
    found = network_sweep(regression, TRAIN, TEST, [1, 4, 32], **options)
    assert found.num_parameters == (13, 49, 385)
    assert found.num_data == N
    assert found.train_error.shape == found.test_error.shape == (3, 2)
    assert bool((found.train_error.mean(1).diff() < 0).all())  # wider networks fit better

    def classes(width: int) -> tuple[nn.Module, guides.Guide]:
        net = nn.Sequential(nn.Linear(D, width), nn.ReLU(), nn.Linear(width, 3))
        model = pb.SupervisedModel(net, pb.likelihoods.Categorical(), dist.Normal(0.0, 1.0), num_data=N)
        return model, guides.MAP(model)

    rows = [(x, (y[:, 0] > -0.3).long() + (y[:, 0] > 0.3)) for x, y in (TRAIN, TEST)]
    found = network_sweep(classes, *rows, [2, 16], **options | {"repetitions": 1})
    assert found.num_data == 2 * N
    assert float(found.train_error[1]) <= float(found.train_error[0]) <= 2 / 3
    assert 0.0 < float(found.test_error[1]) < 2 / 3  # better than chance


@pytest.mark.parametrize("widths", [[], [0], [-3], [1.5], [4, 2], [2, 2], 3, None, "12"])
def test_widths_are_checked(widths: Any) -> None:
    with pytest.raises(ValueError, match=r"^widths: "):
        random_feature_sweep(TRAIN, TEST, widths)
    with pytest.raises(ValueError, match=r"^widths: "):
        network_sweep(regression, TRAIN, TEST, widths)


def test_bad_data_are_refused_by_name() -> None:
    empty = TRAIN[0][:0], TRAIN[1][:0]
    for train, test, says in (
        (empty, TEST, "^train: expected as many"),
        (TRAIN, empty, "^test: expected as many"),
        (TRAIN, (TEST[0][:, :3], TEST[1]), "^test: expected 10 inputs"),
    ):
        with pytest.raises(ValueError, match=says):
            random_feature_sweep(train, test, [2])
    with pytest.raises(TypeError, match=r"^train: expected floating-point targets"):
        random_feature_sweep((TRAIN[0], torch.ones(N, dtype=torch.long)), TEST, [2])
    with pytest.raises(TypeError, match=r"^train: expected \(inputs, targets\)"):
        random_feature_sweep(TRAIN[0], TEST, [2])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"^ridge: "):
        random_feature_sweep(TRAIN, TEST, [2], ridge=-1.0)
