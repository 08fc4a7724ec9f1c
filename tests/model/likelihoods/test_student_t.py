"""Student's t: the suite, its information, degrees of freedom."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from scipy import stats
from torch import Tensor

from pyrobnn.model.likelihoods import Likelihood, StudentT
from tests.conformance.likelihood_suite import LikelihoodConformance
from tests.model.likelihoods.informations import assert_information, outputs_of


def positive(raw: Tensor, floor: float) -> Any:
    return ((1 + raw.exp()).log() + floor).numpy()


class TestStudentTConformance(LikelihoodConformance):
    def make(self, **options: Any) -> Likelihood:
        return StudentT(5.0, 0.01, **options)

    def log_density(self, outputs: Tensor, y: Tensor) -> Tensor:
        first, raw = outputs[:, :2].numpy(), outputs[:, 2:]
        return torch.as_tensor(stats.t(5.0, first, positive(raw, 0.01)).logpdf(y.numpy())).sum(-1)


class TestLearnedStudentTConformance(TestStudentTConformance):
    def make(self, **options: Any) -> Likelihood:
        return StudentT(5.0, 0.01, learn_df=True, **options)


def test_information_in_closed_form() -> None:
    assert_information(StudentT(6.0), outputs_of(4))


def test_degrees_of_freedom_are_learned() -> None:
    likelihood = StudentT(3.0, learn_df=True)
    outputs = torch.zeros(2000, 2)
    y = torch.randn(2000, 1, generator=torch.Generator().manual_seed(0))  # Gaussian: more degrees fit better
    (-likelihood(outputs).log_prob(y).mean()).backward()
    assert [name for name, _ in likelihood.named_parameters()] == ["freedom.log_excess"]
    gradient = next(likelihood.parameters()).grad
    assert gradient is not None
    assert gradient.item() < 0
    assert not list(StudentT(3.0).parameters())


@pytest.mark.parametrize("df", [2.0, 1, -3.0, float("nan"), float("inf"), "4", None, True])
def test_degrees_of_freedom_without_a_variance_are_refused(df: Any) -> None:
    with pytest.raises(ValueError, match="df: expected a number above 2"):
        StudentT(df)


def test_it_moves_with_location_and_scale() -> None:
    parameters = StudentT(5.0).parameters_of(outputs_of(4))
    y = outputs_of(2)
    moved = StudentT(5.0).rescaled(parameters, torch.tensor([1.0, 2.0]), torch.tensor([3.0, 0.5]))
    expected = StudentT().distribution(parameters).log_prob(y) - torch.tensor([3.0, 0.5]).log()
    found = StudentT().distribution(moved).log_prob(torch.tensor([1.0, 2.0]) + torch.tensor([3.0, 0.5]) * y)
    torch.testing.assert_close(found, expected)
