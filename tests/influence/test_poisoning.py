"""Refitting, poisoning and linear datamodeling scores."""

from __future__ import annotations

import math

import pytest
import torch

from pyrobnn import influence
from pyrobnn.guides import MAP
from tests.influence.problems import classifier, logistic, regression


def test_refit_ends_at_the_closed_form() -> None:
    """Conjugate regression from the prior's mean, with and without rows."""
    exact, own = regression()
    guide = influence.refit(own.model, MAP(own.model), own.loader)
    torch.testing.assert_close(guide.flat_loc.detach(), exact.mean, rtol=1e-5, atol=1e-6)
    kept = torch.ones(30, dtype=torch.bool)
    kept[[2, 19]] = False
    design = exact.features[kept]
    precision = design.T @ design / exact.noise**2 + torch.eye(4).double() / exact.prior_scale**2
    expected = torch.linalg.solve(precision, design.T @ own.y[kept, 0] / exact.noise**2)
    without = influence.refit(own.model, own.guide, own.loader, without=[2, 19])
    torch.testing.assert_close(without.flat_loc.detach(), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(own.guide.flat_loc.detach(), exact.mean)


def test_refit_of_some_sites_leaves_the_others() -> None:
    own = classifier()
    guide = influence.refit(own.model, own.guide, own.loader, without=[0, 1], sites=["net.4.weight", "net.4.bias"])
    before, after = own.guide.starting_point(), guide.starting_point()
    assert torch.equal(before["net.0.weight"], after["net.0.weight"])
    assert not torch.equal(before["net.4.weight"], after["net.4.weight"])


def test_refit_says_when_it_has_not_converged() -> None:
    own = classifier()
    with pytest.warns(UserWarning, match=r"^max_iterations: after 2 iterations the gradient has an entry of"):
        influence.refit(own.model, MAP(own.model), own.loader, max_iterations=2)


def test_one_poisoned_image_flips_a_prediction() -> None:
    """Digits 3 and 8, N = 60: the least certain right test prediction, an image moved by at most 0.5 of 1."""
    own = logistic(60, 0.5)
    method = influence.Exact(own.model, own.guide, own.loader)
    point = own.guide.starting_point()
    margins = ((own.test_x @ point["net.weight"].T + point["net.bias"]) * (2 * own.test_y - 1))[:, 0]
    target = int(margins.where(margins > 0, torch.inf).argmin())
    x, y = own.test_x[target : target + 1], own.test_y[target : target + 1]
    row = int(method.perturbation(x, y, list(range(60)))[0].abs().sum(1).argmax())
    options = {"step_size": 0.1, "steps": 10, "epsilon": 0.5, "clip": (0.0, 1.0), "enough": math.log(2.0)}
    found = influence.poison(own.model, own.guide, own.loader, x, y, [row], **options)  # type: ignore[arg-type]
    assert float(found.losses[0]) < math.log(2.0) <= float(found.losses[-1])
    assert bool((found.losses[1:, 0] > found.losses[:-1, 0]).all())
    moved = torch.cat([batch.inputs for batch in found.batches])
    assert torch.equal(moved[row], found.inputs[0])
    others = [index for index in range(60) if index != row]
    assert torch.equal(moved[others], own.x[others])
    assert float((found.inputs[0] - own.x[row]).abs().max()) <= 0.5 + 1e-12
    assert float(found.inputs.min()) >= 0.0 and float(found.inputs.max()) <= 1.0
    refitted = influence.refit(own.model, own.guide, found.batches)
    torch.testing.assert_close(refitted.flat_loc, found.guide.flat_loc, rtol=1e-3, atol=1e-4)


def test_a_first_step_changes_the_loss_as_predicted() -> None:
    """A step of 1e-4 along the sign: the sum of absolute derivatives, to 2 %."""
    own = logistic(60, 0.5)
    x, y = own.test_x[:1], own.test_y[:1]
    slope = influence.Exact(own.model, own.guide, own.loader).perturbation(x, y, [3, 40]).abs().sum()
    found = influence.poison(own.model, own.guide, own.loader, x, y, [3, 40], step_size=1e-4, steps=1, tolerance=1e-7)
    assert float(found.losses[1] - found.losses[0]) == pytest.approx(1e-4 * float(slope), rel=0.02)


def test_bad_options_of_poisoning_are_refused() -> None:
    own = logistic(60)
    x, y = own.test_x[:1], own.test_y[:1]
    for name, value in (("step_size", 0.0), ("steps", 0), ("epsilon", -1.0), ("enough", -1.0), ("clip", (1.0, 0.0))):
        with pytest.raises(ValueError, match=rf"^{name}: "):
            influence.poison(own.model, own.guide, own.loader, x, y, [0], **{"step_size": 0.1, name: value})  # type: ignore
    with pytest.raises(ValueError, match=r"^clip: the rows' inputs reach from"):
        influence.poison(own.model, own.guide, own.loader, x, y, [0], step_size=0.1, clip=(0.0, 0.1))


def test_scores_are_rank_correlations_of_each_test_datum() -> None:
    """Any increasing function has 1, its mirror image -1, ties share ranks; constants are left out."""
    predicted = torch.tensor([[1.0, 2.0, 3.0, 4.0], [1.0, 2.0, 3.0, 4.0], [1.0, 2.0, 3.0, 4.0]])
    observed = torch.stack([predicted[0].exp(), -predicted[1], torch.tensor([1.0, 1.0, 2.0, 0.0])])
    found = influence.linear_datamodeling_score(predicted, observed)
    # Ranks 2.5, 2.5, 4, 1 beside 1, 2, 3, 4: covariance -1.5 over sqrt(5 · 4.5)
    torch.testing.assert_close(found.by_test, torch.tensor([1.0, -1.0, -1.5 / 22.5**0.5]).double())
    assert found.score == pytest.approx(float(found.by_test.mean()))
    assert found.standard_error == pytest.approx(float(found.by_test.std() / 3**0.5))
    constant = influence.linear_datamodeling_score(predicted, torch.stack([observed[0], observed[1], torch.ones(4)]))
    assert constant.score == pytest.approx(0.0) and bool(constant.by_test[2].isnan())


@pytest.mark.parametrize(
    ("predicted", "observed", "message"),
    [
        (torch.ones(2, 3), torch.ones(2, 4), "observed: expected the shape"),
        (torch.ones(2, 2), torch.ones(2, 2), "predicted: expected"),
        (torch.ones(2, 3).long(), torch.ones(2, 3), "predicted: expected a floating-point"),
        (torch.ones(2, 3), torch.full((2, 3), math.nan), "observed: it holds NaN"),
        (torch.ones(2, 3), None, "observed: expected a floating-point"),
    ],
)
def test_what_has_no_score_is_refused(predicted: torch.Tensor, observed: torch.Tensor, message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=f"^{message}"):
        influence.linear_datamodeling_score(predicted, observed)
