"""What trains or differentiates sets the gradient modes it needs: results are those outside of any such block."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any, TypeAlias

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

import pyrobnn as pb
from pyrobnn.distillation import online_distill
from pyrobnn.guides import MAP, DeltaMixture, Laplace, MeanField
from pyrobnn.objectives import ELBO, AdversarialELBO, RegularizedELBO, perturbed
from pyrobnn.robustness import FGSM, PGD
from pyrobnn.sampling import HMC, NUTS, SGLD

Mode: TypeAlias = Callable[[], contextlib.AbstractContextManager[Any]]
MODES: list[Mode] = [torch.no_grad, torch.inference_mode]

X = torch.linspace(-1.0, 1.0, 24).reshape(12, 2)
Y = X @ torch.tensor([[2.0], [-1.0]])
LABELS = (Y[:, 0] > 0).long()


def regression() -> pb.SupervisedModel:
    torch.manual_seed(0)
    return pb.SupervisedModel(nn.Linear(2, 1), pb.likelihoods.Normal(0.1), dist.Normal(0.0, 1.0), num_data=12)


def fitted(mode: Mode, guide: Callable[..., Any] = MAP, is_classes: bool = False, **options: Any) -> list[Tensor]:
    model, y = regression(), Y
    if is_classes:
        y = LABELS
        model = pb.SupervisedModel(nn.Linear(2, 2), pb.likelihoods.Categorical(), dist.Normal(0.0, 1.0), num_data=12)
    found = guide(model)
    with mode():
        pb.fit(model, found, [(X, y)], epochs=5, lr=0.05, seed=0, validation=[(X, y)], progress=False, **options)
    return list(found.parameters())


def sampled(mode: Mode, kernel: Any) -> list[Tensor]:
    model = regression()
    with mode():
        chains = pb.sample(model, (X, Y), kernel=kernel, num_samples=3, warmup_steps=5, seed=0, progress=False)
    return [chains.sample(3)["net.weight"]]


def curvature(mode: Mode, structure: Any) -> list[Tensor]:
    model = regression()
    guide = Laplace(model, structure=structure)
    with mode():
        guide.fit(model, [(X, Y)])
    return list(guide.buffers())


def distilled(mode: Mode) -> list[Tensor]:
    draws = pb.sample(regression(), (X, Y), kernel=SGLD(1e-4), num_samples=20, seed=0, progress=False)
    with mode():
        generator = pb.distill(draws, components=2, steps=3, batch_size=10, seed=0, progress=False)
    return list(generator.parameters())


def distilled_online(mode: Mode) -> list[Tensor]:
    model = regression()
    options: dict[str, Any] = {"buffer_size": 20, "steps": 3, "batch_size": 10, "seed": 0, "progress": False}
    with mode():
        generator = online_distill(model, (X, Y), kernel=SGLD(1e-4), num_samples=20, **options)
    return list(generator.parameters())


def finetuned(mode: Mode) -> list[Tensor]:
    torch.manual_seed(0)
    net = nn.Linear(2, 2)
    with mode():
        _, guide = pb.finetune(net, [(X, LABELS)], num_data=12, epochs=2, lr=0.05, seed=0, progress=False)
    assert not any(parameter.is_inference() for parameter in guide.parameters())
    return list(guide.parameters())


def attacked(mode: Mode) -> list[Tensor]:
    model = regression()
    guide = MeanField(model)
    with mode():
        x, y = X.clone(), Y.clone()
        return [FGSM(0.1)(model, guide, X, Y, seed=0), PGD(0.1, steps=3)(model, guide, x, y, seed=0)]


def differentiated(mode: Mode) -> list[Tensor]:
    model = regression()
    guide = MAP(model)
    with mode():
        ELBO().backward(model, guide, (X, Y))
    assert guide.loc.grad is not None
    return [guide.loc.grad]


USES: dict[str, Callable[[Mode], list[Tensor]]] = {
    "fit": fitted,
    "fit of MeanField": lambda mode: fitted(mode, MeanField),
    "fit of members": lambda mode: fitted(mode, lambda model: DeltaMixture(model, 3)),
    "fit with adversarial draws": lambda mode: fitted(mode, MeanField, elbo=AdversarialELBO()),
    "fit with a regularizer": lambda mode: fitted(mode, MeanField, True, elbo=RegularizedELBO(perturbed(0.1))),
    "SGLD": lambda mode: sampled(mode, SGLD(1e-4)),
    "HMC": lambda mode: sampled(mode, HMC()),
    "NUTS": lambda mode: sampled(mode, NUTS()),
    "full Laplace": lambda mode: curvature(mode, "full"),
    "Kronecker Laplace": lambda mode: curvature(mode, "kronecker"),
    "distill": distilled,
    "online_distill": distilled_online,
    "finetune": finetuned,
    "attacks": attacked,
    "backward": differentiated,
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("use", USES.values(), ids=USES)
def test_results_do_not_depend_on_the_mode_around(use: Callable[[Mode], list[Tensor]], mode: Mode) -> None:
    def checked() -> contextlib.AbstractContextManager[Any]:
        """The mode, which the call must leave as it found it."""
        return _left_alone(mode)

    torch.manual_seed(1)
    expected = use(contextlib.nullcontext)
    torch.manual_seed(1)
    found = use(checked)
    assert found
    for value, right in zip(found, expected, strict=True):
        torch.testing.assert_close(value.detach(), right.detach(), rtol=0.0, atol=0.0)


@contextlib.contextmanager
def _left_alone(mode: Mode) -> Any:
    with mode():
        before = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
        yield
        assert (torch.is_grad_enabled(), torch.is_inference_mode_enabled()) == before


@pytest.mark.parametrize("argument", ["model", "guide", "batch"])
def test_tensors_made_under_inference_mode_are_refused(argument: str) -> None:
    """They can have no gradient, which torch says only where one is computed."""
    x, y = X, Y
    with torch.inference_mode(argument == "model"):
        model = regression()
    with torch.inference_mode(argument == "guide"):
        guide = MAP(model)
    with torch.inference_mode(argument == "batch"):
        x = X + 0.0
    with pytest.raises(ValueError, match=rf"^{argument}: .*inference_mode"):
        pb.fit(model, guide, [(x, y)], epochs=1, progress=False)
    if argument != "guide":
        with pytest.raises(ValueError, match=rf"^{argument}: .*inference_mode"):
            pb.sample(model, (x, y), kernel=SGLD(1e-4), num_samples=1, progress=False)
