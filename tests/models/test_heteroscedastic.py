import math

import torch

import pyrobnn as pb
from models.heteroscedastic import heteroscedastic


def test_noise_that_grows_with_the_input_is_found() -> None:
    """σ = 0.1 + 0.4 x on 400 rows: mean within 0.1, the noise of both ends apart; the parts of the variance add up."""
    torch.manual_seed(0)
    x = torch.rand(400, 1)
    y = (3 * x).sin() + (0.1 + 0.4 * x) * torch.randn(400, 1)
    model = heteroscedastic(400, hidden=20, warmup=20)
    guide = pb.guides.MAP(model)
    pb.fit(model, guide, [(x, y)], epochs=250, lr=0.02, progress=False)
    at = torch.tensor([[0.1], [0.9]])
    found = pb.predict(model, guide, at, 1)
    torch.testing.assert_close(found.mean, (3 * at).sin(), rtol=0, atol=0.2)
    low, high = found.std.flatten().tolist()
    assert math.log(high / low) > 0.5
    torch.testing.assert_close(found.total, found.aleatoric + found.epistemic)


def test_two_targets() -> None:
    model = heteroscedastic(5, inputs=3, targets=2)
    found = pb.predict(model, pb.guides.MeanField(model), torch.randn(5, 3), 4)
    assert found.mean.shape == (5, 2)
