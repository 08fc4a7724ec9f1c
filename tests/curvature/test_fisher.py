"""Roots of the outputs' Fisher information: against the Hessian, and against sampled scores."""

from __future__ import annotations

from collections.abc import Mapping

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor
from torch.autograd.functional import hessian

from pyrobnn import likelihoods
from pyrobnn.curvature.fisher import SAMPLED_COLUMNS, fisher_roots, information_of
from pyrobnn.model.likelihoods import Likelihood
from pyrobnn.model.likelihoods.information import FisherInformation
from tests.conformance.monte_carlo import Z, z_of_mean

SMOOTH = {
    "classes": (likelihoods.Categorical(), (3, 4), torch.tensor([0, 3, 1])),
    "pixels": (likelihoods.Categorical(class_dim=1), (2, 3, 2, 2), torch.randint(3, (2, 2, 2))),
    "binary": (likelihoods.Bernoulli(), (3, 2), torch.tensor([[0.0, 1.0], [1.0, 1.0], [0.0, 0.0]]).double()),
    "Gaussian": (likelihoods.Normal(0.3), (3, 2), torch.randn(3, 2).double()),
    "Gaussian, a scale per output": (likelihoods.Normal([0.3, 2.0]), (3, 2), torch.randn(3, 2).double()),
    "one output": (likelihoods.Normal(0.3), (3,), torch.randn(3).double()),
    "counts": (likelihoods.Poisson(), (3, 2), torch.tensor([[0.0, 1.0], [5.0, 1.0], [2.0, 0.0]]).double()),
}


def information(roots: Tensor) -> Tensor:
    """Λ of each datum, ``[B, O, O]``."""
    columns = roots.reshape(*roots.shape[:2], -1)
    return torch.einsum("cbi,cbj->bij", columns, columns)


@pytest.mark.parametrize("name", SMOOTH)
def test_it_is_the_hessian_in_the_outputs(name: str) -> None:
    likelihood, shape, y = SMOOTH[name]
    likelihood = likelihood.double()
    torch.manual_seed(0)
    outputs = torch.randn(shape).double()
    found = information(fisher_roots(likelihood, outputs))
    for index in range(len(outputs)):

        def negative_log_prob(flat: Tensor, index: int = index) -> Tensor:
            return -likelihood(flat.view(1, *shape[1:])).log_prob(y[index : index + 1]).sum()

        expected = hessian(negative_log_prob, outputs[index].flatten())
        torch.testing.assert_close(found[index], expected, rtol=1e-9, atol=1e-12)


@pytest.mark.statistical
@pytest.mark.parametrize("likelihood", [likelihoods.HeteroscedasticNormal(0.1), likelihoods.Categorical()], ids=repr)
def test_it_is_the_covariance_of_the_score(likelihood: Likelihood) -> None:
    """20 000 targets; z-score below 5."""
    pyro.set_rng_seed(1)
    outputs = torch.randn(1, 4).double().expand(20_000, 4).clone().requires_grad_()
    observation = likelihood.double()(outputs)
    score = torch.autograd.grad(observation.log_prob(observation.sample()).sum(), outputs)[0]
    expected = information(fisher_roots(likelihood, outputs[:1]))[0]
    assert z_of_mean(score.unsqueeze(-1) * score.unsqueeze(-2), expected) < Z


class Robust(Likelihood):
    """A likelihood of a user's own."""

    def parameters_of(self, outputs: Tensor) -> dict[str, Tensor]:
        return {"loc": outputs}

    def distribution(self, parameters: Mapping[str, Tensor]) -> dist.StudentT:
        return dist.StudentT(5.0, parameters["loc"], 0.5)


@pytest.mark.statistical
@pytest.mark.parametrize(
    ("likelihood", "known"),
    # The information of a Student t of location: (ν + 1) / ((ν + 3) σ²).
    [(Robust(), 6.0 / 8.0 / 0.25), (likelihoods.Normal(0.5), 4.0)],
    ids=["own", "many outputs"],
)
def test_sampled_roots_average_to_it(likelihood: Likelihood, known: float) -> None:
    """400 roots of 20 columns each; z-score below 5."""
    pyro.set_rng_seed(2)
    outputs = torch.randn(400, 2).double()
    roots = fisher_roots(likelihood.double(), outputs, max_exact=1)
    assert roots.shape == (SAMPLED_COLUMNS, 400, 2)
    assert z_of_mean(information(roots), known * torch.eye(2).double()) < Z


def test_few_outputs_are_exact_under_a_limit() -> None:
    outputs = torch.randn(5, 3)
    likelihood = likelihoods.Categorical()
    assert torch.equal(fisher_roots(likelihood, outputs, max_exact=3), fisher_roots(likelihood, outputs))


def test_a_likelihood_that_ignores_targets_is_refused() -> None:
    with pytest.raises(ValueError, match="likelihood: ignore_index masks or weights targets by their values"):
        fisher_roots(likelihoods.Categorical(class_dim=1, ignore_index=9), torch.randn(2, 3, 2, 2))


def test_information_of_pixels_of_two_channels() -> None:
    """Means and raw scales in channels: as of the same outputs in a row."""
    outputs = torch.randn(2, 2, 3, 3).double()
    found = fisher_roots(likelihoods.HeteroscedasticNormal(0.1, dim=1), outputs)
    flat = outputs.movedim(1, -1).reshape(-1, 2)
    diagonal = found.square().sum(0).movedim(1, -1).reshape(-1, 2)
    torch.testing.assert_close(diagonal, fisher_roots(likelihoods.HeteroscedasticNormal(0.1), flat).square().sum(0))


def test_roots_are_those_of_the_matrix() -> None:
    """``diag(d) - l lᵀ + s sᵀ`` of blocks whose ``l`` is not at its limit; weights scale the data's log likelihoods."""
    torch.manual_seed(0)
    d = torch.rand(2, 3, 4).double() + 0.5
    lowered, scores = 0.4 * torch.randn(2, 3, 4).double().sin(), torch.randn(2, 3, 4, 2).double()
    found = FisherInformation(torch.arange(12).reshape(3, 4), d, lowered, scores)
    outer = lowered.unsqueeze(-1) * lowered.unsqueeze(-2)
    expected = torch.diag_embed(d) - outer + scores @ scores.mT
    torch.testing.assert_close(found.matrices(), expected)
    torch.testing.assert_close(found.on_diagonal(), expected.diagonal(dim1=-2, dim2=-1))
    weight = torch.tensor([0.0, 3.0]).double()
    torch.testing.assert_close(found.weighted(weight, d.dtype).matrices(), expected * weight.reshape(2, 1, 1, 1))
    assert found.root().shape[-1] * 3 == found.columns


def test_a_likelihood_that_declares_its_information_is_exact() -> None:
    class Declared(Robust):
        def fisher_information(self, outputs: Tensor) -> FisherInformation:
            return FisherInformation.of_independent(torch.full_like(outputs, 3.0))

    outputs = torch.randn(4, 2).double()
    torch.testing.assert_close(
        information(fisher_roots(Declared(), outputs)), 3.0 * torch.eye(2).double().expand(4, 2, 2)
    )


def test_a_subclass_of_another_density_samples() -> None:
    class Other(likelihoods.Categorical):
        pass

    assert information_of(Other(), torch.randn(3, 2)).scores is not None


def test_probabilities_of_thousands_of_classes_need_no_matrix() -> None:
    """8 data of 20,000 classes: the blocks would take 25 GB."""
    found = information_of(likelihoods.Categorical(), torch.randn(8, 20_000))
    p = torch.as_tensor(found.diagonal)
    torch.testing.assert_close(found.on_diagonal(), p * (1 - p))


MASKED = torch.tensor([[0, 9, 2, 1], [9, 9, 1, 0], [2, 2, 9, 0]])


@pytest.mark.parametrize("class_weight", [None, [0.5, 2.0, 1.0]])
def test_masked_and_weighted_labels_count_by_their_scale(class_weight: list[float] | None) -> None:
    """Minus the Hessian of the log likelihood in the outputs, by autograd; it is zero where a label is ignored."""
    likelihood = likelihoods.Categorical(ignore_index=9, class_weight=class_weight).double()
    outputs = torch.randn(3, 4, 3, dtype=torch.float64)

    def score(row: Tensor, labels: Tensor) -> Tensor:
        return -likelihood(row.reshape(1, 4, 3)).log_prob(labels.unsqueeze(0)).sum()

    found = information(fisher_roots(likelihood, outputs, targets=MASKED))
    for row in range(3):
        expected = torch.autograd.functional.hessian(lambda o, y=MASKED[row]: score(o, y), outputs[row].reshape(-1))
        torch.testing.assert_close(found[row], expected)


def test_few_columns_of_masked_labels_are_unbiased() -> None:
    """2,000 estimates of 20 columns, z below 5."""
    likelihood = likelihoods.Categorical(ignore_index=9).double()
    outputs = torch.randn(3, 4, 3, dtype=torch.float64)
    exact = information(fisher_roots(likelihood, outputs, targets=MASKED))
    found = torch.stack(
        [information(fisher_roots(likelihood, outputs, max_exact=1, targets=MASKED)) for _ in range(2000)]
    )
    assert len(fisher_roots(likelihood, outputs, max_exact=1, targets=MASKED)) == SAMPLED_COLUMNS
    assert z_of_mean(found, exact) < Z
    assert bool((found[:, 1, :6] == 0).all())  # the first two labels of the second row


def test_a_scale_for_another_number_of_targets_is_refused() -> None:
    with pytest.raises(ValueError, match="scale: expected a factor for each of 4 blocks"):
        information_of(likelihoods.Categorical(), torch.randn(3, 4, 3)).scaled(torch.ones(3, 2))
