"""What models declare: latent sites that are drawn without data, and the number of data."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
from torch import nn

from pyrobnn import SupervisedModel, likelihoods
from pyrobnn.model.declarations import declared_num_data, example_if_needed, latent_sampler


def plain_model(x: object) -> None:
    pyro.sample("w", dist.Normal(0.0, 1.0))


def test_a_model_of_this_library_declares_both() -> None:
    model = SupervisedModel(nn.Linear(2, 1), likelihoods.Normal(), dist.Normal(0.0, 1.0), num_data=7)
    sampler = latent_sampler(model)
    assert sampler is not None and set(sampler()) == {"weight", "bias"}
    assert example_if_needed(model, (1, 2)) is None
    assert declared_num_data(model) == 7


def test_another_model_declares_neither() -> None:
    assert latent_sampler(plain_model) is None
    assert example_if_needed(plain_model, (1, 2)) == (1, 2)
    assert declared_num_data(plain_model) is None


@pytest.mark.parametrize("value", [None, "10", 2.5])
def test_a_number_of_data_is_an_int(value: object) -> None:
    model = nn.Module()
    model.num_data = value  # type: ignore[assignment]
    assert declared_num_data(model) is None
