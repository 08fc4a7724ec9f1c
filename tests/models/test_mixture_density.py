import torch

import pyrobnn as pb
from models.mixture_density import mixture_density


def test_both_roots_are_modes() -> None:
    """x = y² + noise, y from x: two answers of opposite sign, whose mean is none of them."""
    torch.manual_seed(0)
    y = torch.randn(300, 1).sign() * (0.5 + torch.rand(300, 1))
    x = y.square() + 0.05 * torch.randn(300, 1)
    model = mixture_density(300, hidden=20, components=2, floor=0.02)
    guide = pb.guides.MAP(model)
    pb.fit(model, guide, [(x, y)], epochs=300, lr=0.02, progress=False)
    found = pb.predict(model, guide, torch.tensor([[1.0]]), 1, return_draws=True)
    values = found.modes(2).values.flatten().sort().values  # type: ignore[attr-defined]
    torch.testing.assert_close(values, torch.tensor([-1.0, 1.0]), rtol=0, atol=0.15)
    assert abs(float(found.mean)) < 0.5


def test_full_covariances_of_three_targets() -> None:
    model = mixture_density(5, inputs=2, targets=3, components=2, covariance="full")
    found = pb.predict(model, pb.guides.MeanField(model), torch.randn(5, 2), 4, return_draws=True)
    assert found.mean.shape == (5, 3)
    assert found.log_prob(torch.zeros(5, 3)).shape == (5,)
