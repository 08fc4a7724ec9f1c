"""One training step, its loss and gradients, a network's state, and comparisons of them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pyro
import pytest
import torch
from torch import Tensor, nn

from pyrobnn.guides import Guide
from pyrobnn.objectives import ELBO


def seeded(act: Callable[[], Any]) -> Any:
    """What ``act`` returns under a fixed seed."""
    pyro.set_rng_seed(7)
    return act()


def gradients(model: nn.Module, guide: Guide, batch: Any, elbo: Any = None) -> dict[str, Tensor]:
    """Loss and gradients of one evaluation by ``loss_and_grads``; gradients are clear before and after."""
    both = nn.ModuleDict({"model": model, "guide": guide})
    both.zero_grad()
    loss = (elbo or ELBO()).loss_and_grads(model, guide, *batch)
    found = {name: p.grad.clone() for name, p in both.named_parameters() if p.grad is not None}
    both.zero_grad()
    return {"loss": torch.tensor(loss, dtype=torch.float64), **found}


@contextmanager
def broken_off() -> Iterator[None]:
    """Ctrl-C right after the first backward pass of the block."""
    backward = torch.Tensor.backward

    def interrupted(*args: Any, **options: Any) -> None:
        backward(*args, **options)
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.Tensor, "backward", interrupted)
        with pytest.raises(KeyboardInterrupt):
            yield


def step(model: nn.Module, guide: Guide, batch: Any) -> None:
    """One optimizer step on the guide."""
    ELBO().loss_and_grads(model, guide, *batch)
    torch.optim.SGD(guide.parameters(), lr=1e-3).step()
    nn.ModuleDict({"model": model, "guide": guide}).zero_grad()


def assert_in_place_matches_autograd(model: nn.Module, guide: Guide, batch: Any) -> None:
    """``loss_and_grads`` against ``differentiable_loss().backward()`` for the same noise."""
    clone_of_model, clone = copy.deepcopy((model, guide))
    in_place = seeded(lambda: gradients(model, guide, batch))

    class ByAutograd(ELBO):
        def loss_and_grads(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> float:
            loss = self.differentiable_loss(model, guide, *args, **kwargs)
            loss.backward()
            return loss.item()

    by_autograd = seeded(lambda: gradients(clone_of_model, clone, batch, ByAutograd()))
    assert {name for name in by_autograd if name.startswith("guide")}
    assert_same(in_place, by_autograd, rtol=1e-9, atol=1e-9)


def assert_same(
    found: Mapping[str, Tensor], expected: Mapping[str, Tensor], rtol: float = 0.0, atol: float = 0.0
) -> None:
    """Equality of dictionaries of tensors, exact by default."""
    assert list(found) == list(expected)
    for name, value in found.items():
        torch.testing.assert_close(
            value, expected[name], rtol=rtol, atol=atol, msg=lambda text, name=name: f"{name}: {text}"
        )


def network_state(model: nn.Module) -> dict[str, Any]:
    """Parameters, buffers, ``requires_grad`` and modes."""
    return {
        "tensors": copy.deepcopy(model.state_dict()),
        "requires_grad": {name: p.requires_grad for name, p in model.named_parameters()},
        "modes": {name: module.training for name, module in model.named_modules()},
    }


def assert_same_state(found: dict[str, Any], expected: dict[str, Any]) -> None:
    """Equality of what :func:`network_state` collects."""
    assert_same(found["tensors"], expected["tensors"])
    assert found["requires_grad"] == expected["requires_grad"]
    assert found["modes"] == expected["modes"]
