"""Influence by Laplace's curvature, EK-FAC and random projections, beside the exact forms."""

from __future__ import annotations

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

import pyrobnn as pb
from pyrobnn import guides, influence
from pyrobnn.curvature import gauss_newton
from pyrobnn.guides import Laplace
from tests.influence.problems import Problem, classifier, regression


def fitted(own: Problem, structure: str) -> Laplace:
    return Laplace(own.model, init=own.guide, structure=structure).fit(own.model, own.loader)  # type: ignore[arg-type]


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


def test_every_structure_that_is_the_whole_matrix_is_exact() -> None:
    """One output: full, last layer and Kronecker curvature of a linear model are its Hessian; the diagonal is not."""
    _, own = regression()
    expected = influence.Exact(own.model, own.guide, own.loader).upweighting(own.test_x, own.test_y)
    for structure in ("full", "last_layer", "kronecker", "diagonal"):
        method = influence.LaplaceCurvature(own.model, fitted(own, structure), own.loader)
        error = relative(method.upweighting(own.test_x, own.test_y), expected)
        assert (error < 1e-9) == (structure != "diagonal"), (structure, error)


def test_full_and_last_layer_are_gauss_newton_of_a_network() -> None:
    own = classifier()
    for structure, sites in (("full", None), ("last_layer", ["net.4.weight", "net.4.bias"])):
        exact = influence.Exact(own.model, own.guide, own.loader, matrix="gauss_newton", sites=sites)
        method = influence.LaplaceCurvature(own.model, fitted(own, structure), own.loader)
        expected = exact.upweighting(own.test_x, own.test_y)
        assert relative(method.upweighting(own.test_x, own.test_y), expected) < 1e-6
        for form in ("leverage", "newton"):
            expected = exact.removal(own.test_x, own.test_y, [[0], [3, 4]], form=form)  # type: ignore[arg-type]
            found = method.removal(own.test_x, own.test_y, [[0], [3, 4]], form=form)  # type: ignore[arg-type]
            assert relative(found, expected) < 1e-6


def test_ekfac_has_the_diagonal_of_gauss_newton_in_the_kronecker_basis() -> None:
    own = classifier()
    method = influence.EKFAC(own.model, own.guide, own.loader)
    own.model.eval()
    for group, block in zip(("net.0", "net.4"), method.gaussian.blocks, strict=True):
        names = [f"{group}.weight", f"{group}.bias"]
        matrix = gauss_newton(own.model, own.guide.starting_point(), names, own.x)
        width = block.shape[1] - 1  # type: ignore[attr-defined]
        rows = own.guide.starting_point()[names[0]].shape[0]
        order = [i for r in range(rows) for i in (*range(r * width, (r + 1) * width), rows * width + r)]
        matrix = matrix[order][:, order]
        basis = block.expand(torch.eye(block.size, dtype=torch.float64))  # type: ignore[attr-defined]
        torch.testing.assert_close((basis @ matrix @ basis.T).diagonal(), block.eigenvalues)  # type: ignore
    own.model.train()


def test_kronecker_forms_rank_rows_as_gauss_newton_does() -> None:
    """Rank correlation of influences with those of the full matrix, 22 weights in two layers."""
    own = classifier(48)
    exact = influence.Exact(own.model, own.guide, own.loader, matrix="gauss_newton")
    expected = exact.removal(own.test_x, own.test_y)
    laplace = fitted(own, "kronecker")
    scores = [
        influence.linear_datamodeling_score(
            kind(own.model, laplace, own.loader).removal(own.test_x, own.test_y), expected
        )
        for kind in (influence.LaplaceCurvature, influence.EKFAC)
    ]
    assert min(score.score for score in scores) > 0.5, scores


def test_a_projection_to_all_weights_is_gauss_newton() -> None:
    own = classifier()
    expected = influence.Exact(own.model, own.guide, own.loader, matrix="gauss_newton").upweighting(
        own.test_x, own.test_y
    )
    method = influence.RandomProjection(own.model, own.guide, own.loader, dim=500)
    assert relative(method.upweighting(own.test_x, own.test_y), expected) < 1e-9
    small = influence.RandomProjection(own.model, own.guide, own.loader, dim=15)
    found = small.upweighting(own.test_x, own.test_y)
    assert float(torch.corrcoef(torch.stack([found.flatten(), expected.flatten()]))[0, 1]) > 0.5
    other = influence.RandomProjection(own.model, own.guide, own.loader, dim=15, seed=1)
    assert not torch.equal(other.upweighting(own.test_x, own.test_y), found)


def test_trak_is_the_papers_formula() -> None:
    """τ = φ_t (ΦᵀΦ)⁻¹ φ_n (1 - p_n) of margins' gradients, by autograd one datum at a time."""
    own = classifier(48)
    names = [site.name for site in influence.Exact(own.model, own.guide, own.loader).sites]
    method = influence.RandomProjection(own.model, own.guide, own.loader, dim=6, kernel="trak", seed=3)
    own.model.eval()
    point = own.guide.starting_point()

    def margin(x: Tensor, y: Tensor) -> tuple[Tensor, float]:
        leaves = {name: point[name].clone().requires_grad_() for name in names}
        hidden = own.model.net.network[1:3](x[None] @ leaves["net.0.weight"].T + leaves["net.0.bias"])
        log_p = (hidden @ leaves["net.4.weight"].T + leaves["net.4.bias"]).log_softmax(-1)[0, y]
        margin = log_p - torch.log1p(-log_p.exp())
        gradient = torch.cat([g.flatten() for g in torch.autograd.grad(margin, list(leaves.values()))])
        return gradient @ method.columns, 1.0 - float(log_p.detach().exp())

    train = [margin(*pair) for pair in zip(own.x, own.y, strict=True)]
    test = [margin(*pair) for pair in zip(own.test_x, own.test_y, strict=True)]
    features, wrong = torch.stack([f for f, _ in train]), torch.tensor([w for _, w in train]).double()
    kernel = torch.linalg.inv(features.T @ features)
    tau = torch.stack([f for f, _ in test]) @ kernel @ (features * wrong[:, None]).T
    expected = -torch.tensor([w for _, w in test]).double()[:, None] * tau
    torch.testing.assert_close(method.upweighting(own.test_x, own.test_y), expected, rtol=1e-6, atol=1e-10)
    own.model.train()


def test_what_they_cannot_do_is_refused() -> None:
    _, own = regression()
    with pytest.raises(TypeError, match=r"^guide: expected a fitted Laplace guide"):
        influence.LaplaceCurvature(own.model, own.guide, own.loader)
    with pytest.raises(RuntimeError, match=r"^Laplace: it has no curvature yet"):
        influence.LaplaceCurvature(own.model, Laplace(own.model), own.loader)
    with pytest.raises(ValueError, match=r"^kernel: 'trak' is made of the margins of classes"):
        influence.RandomProjection(own.model, own.guide, own.loader, kernel="trak")
    few = classifier(9)
    singular = influence.RandomProjection(few.model, few.guide, few.loader, kernel="trak", dim=20)
    with pytest.raises(ValueError, match=r"^damping: with 0 the curvature is not positive definite"):
        singular.upweighting(few.test_x, few.test_y)
    tiny = guides.Laplace(own.model, init=own.guide, structure="diagonal").fit(own.model, own.loader)
    for block in tiny.flat_blocks:
        block.multiplier.fill_(1e-6)
        block.eigenvalues.fill_(1e-3)  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match=r"^form: rows .* leverage of"):
        influence.LaplaceCurvature(own.model, tiny, own.loader).removal(own.test_x, own.test_y, form="leverage")


def test_class_weights_are_part_of_the_loss() -> None:
    """A likelihood that weighs classes: gradients are those of the objective's loss."""
    x, y = torch.randn(12, 2, generator=torch.Generator().manual_seed(0)), torch.arange(12) % 2
    net = nn.Linear(2, 2)
    likelihood = pb.likelihoods.Categorical(class_weight=torch.tensor([1.0, 3.0]))
    model = pb.SupervisedModel(net, likelihood, dist.Normal(0.0, 1.0), num_data=12).double()
    x = x.double()
    guide = influence.refit(model, guides.MAP(model), [(x, y)])
    method = influence.Exact(model, guide, [(x, y)])
    assert method.gradient_norm() < 1e-4
    assert method.upweighting(x, y).shape == (12, 12)
