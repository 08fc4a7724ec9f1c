"""Structured GANs: the theorem on a toy whose outcomes can be enumerated, options, who moves, scores."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, log_softmax, softplus

from models.conditional_gan import Joined
from models.late_ramp import LateRamp
from models.semi_supervised import SemiSupervisedBatches
from models.structured_gan import SGANOptions, StructuredGAN, style_reconstruction
from models.structured_gan_scores import controllability, style_grid, style_information, style_transfer
from pyrobnn import schedules
from pyrobnn.core.schedules import Schedule
from pyrobnn.training import DiscriminatorWatch, Game

# The toy: two classes, two styles, three values of x; G is a table p(x | y, z) under which classes overlap.
P_Y, P_Z = torch.tensor([0.4, 0.6], dtype=torch.float64), torch.tensor([0.3, 0.7], dtype=torch.float64)
TABLE = torch.tensor(
    [[[0.7, 0.2, 0.1], [0.5, 0.4, 0.1]], [[0.1, 0.3, 0.6], [0.2, 0.2, 0.6]]], dtype=torch.float64
)  # [y, z, x]


class Toy:
    """Exact losses of tables of logits: G ``[y, z, x]``, C and D_xy ``[x, y]``, I and D_xz ``[x, z]``."""

    def __init__(self) -> None:
        self.g = TABLE.log().requires_grad_()
        data = torch.einsum("y,z,yzx->xyz", P_Y, P_Z, TABLE)
        self.data_xy, self.data_x = data.sum(2), data.sum((1, 2))
        generator = torch.Generator().manual_seed(0)
        self.c, self.i = (nn.Parameter(torch.randn(3, 2, dtype=torch.float64, generator=generator)) for _ in range(2))
        self.d_xy, self.d_xz = (torch.zeros(3, 2, dtype=torch.float64, requires_grad=True) for _ in range(2))

    def joint(self) -> Tensor:
        """p_G(x, y, z)."""
        return torch.einsum("y,z,yzx->xyz", P_Y, P_Z, self.g.softmax(-1))

    def values(self) -> dict[str, Tensor]:
        """The four objectives; of the two games the discriminators' losses."""
        made = self.joint()
        made_xy, made_xz = made.sum(2), made.sum(1)
        inferred = self.data_x[:, None] * self.i.softmax(-1)
        return {
            "L_xy": (self.data_xy * softplus(-self.d_xy) + made_xy * softplus(self.d_xy)).sum(),
            "L_xz": (inferred * softplus(-self.d_xz) + made_xz * softplus(self.d_xz)).sum(),
            "R_y": -(made_xy * log_softmax(self.c, -1)).sum(),
            "R_z": -(made_xz * log_softmax(self.i, -1)).sum(),
        }


def divergence(p: Tensor, q: Tensor) -> float:
    """Jensen-Shannon, in nats."""
    mean = 0.5 * (p + q)
    return float(0.5 * ((p * (p / mean).log()).sum() + (q * (q / mean).log()).sum()))


def test_minimizing_reconstructions_over_inference_and_classifier_leaves_the_equilibrium() -> None:
    """Theorem 3.3: at their minima I is p_G(z | x) and C is p_G(y | x), where both games are in equilibrium."""
    toy = Toy()
    descent = lambda parameters, lr: torch.optim.LBFGS(parameters, lr=lr)  # noqa: E731
    for name, table in (("R_z", toy.i), ("R_y", toy.c)):
        optimizer = descent([table], 1.0)

        def closure(name: str = name, optimizer: torch.optim.Optimizer = optimizer) -> Tensor:
            optimizer.zero_grad()
            loss = toy.values()[name]
            loss.backward()
            return loss

        for _ in range(5):
            optimizer.step(closure)
    with torch.no_grad():
        made = toy.joint()
        inferred = toy.data_x[:, None] * toy.i.softmax(-1)
        assert divergence(inferred, made.sum(1)) < 1e-10
        torch.testing.assert_close(toy.c.softmax(-1), toy.data_xy / toy.data_x[:, None], rtol=1e-4, atol=1e-5)
    values = toy.values()
    # With D = 1/2 everywhere nobody gains by a small move in either game, nor I and C in the reconstructions.
    for loss, tables in [
        ("L_xy", (toy.d_xy, toy.g)),
        ("L_xz", (toy.d_xz, toy.g, toy.i)),
        ("R_z", (toy.i,)),
        ("R_y", (toy.c,)),
    ]:
        for slope in torch.autograd.grad(values[loss], tables, retain_graph=True):
            assert float(slope.abs().max()) < 1e-5, loss
    assert float(values["L_xy"].detach()) == pytest.approx(2.0 * math.log(2.0))


def test_minimizing_a_reconstruction_over_the_generator_would_leave_it() -> None:
    """Where classes overlap G can lower R_y by making them easier to tell than they are in the data."""
    toy = Toy()
    with torch.no_grad():
        toy.c.copy_((toy.data_xy / toy.data_x[:, None]).log())
    (slope,) = torch.autograd.grad(toy.values()["R_y"], toy.g)
    assert float(slope.abs().max()) > 0.01


CENTERS = torch.tensor([[-1.5, 0.0], [1.5, 0.0], [0.0, 1.5]])


def rows(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Three classes of two features; the style moves along (1, 1)."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.randint(3, (count,), generator=generator)
    style = 0.4 * torch.randn(count, 1, generator=generator)
    return CENTERS[y] + style + 0.05 * torch.randn(count, 2, generator=generator), y


def sgan(style_game: bool = True, hidden: tuple[int, ...] = (32,), **options: Any) -> StructuredGAN:
    torch.manual_seed(0)
    pair = (Joined(2, 1, hidden), Joined(2 + 1, 1, hidden)) if style_game else (None, None)
    networks = Joined(3 + 1, 2, hidden), Joined(2, 3, hidden), Joined(2 + 3, 1, hidden), *pair
    return StructuredGAN(*networks, num_classes=3, latent_dim=1, options=SGANOptions(**options))


def batches(size: int = 50, unlabeled: int = 500) -> SemiSupervisedBatches:
    x, y = rows(30, 1)
    return SemiSupervisedBatches(x, y, rows(unlabeled, 2)[0], 3, labeled_size=size, batch_size=size)


def test_each_phase_moves_its_own_network() -> None:
    model = sgan()
    game = model.game()
    names = ["D_xy", "D_xz", "I", "G", "C"]
    assert [phase.title for phase in game.phases] == names
    owned = [model.discriminator, model.style_discriminator, model.inference, model.generator, model.classifier]
    batch = next(iter(batches()))
    for phase, own in zip(game.phases, owned, strict=True):
        before = [parameter.detach().clone() for parameter in model.parameters()]
        Game([phase]).rounds(iter([batch]))
        moved = {id(p) for p, old in zip(model.parameters(), before, strict=True) if not torch.equal(p, old)}
        assert moved == {id(parameter) for parameter in own.parameters()}, phase.title


def loss_of(name: str, seed: int = 3, **options: Any) -> float:
    game = sgan(**options).game()
    phase = next(phase for phase in game.phases if phase.title == name)
    torch.manual_seed(seed)
    return float(phase.evaluate(next(iter(batches())))[0].detach())


def test_the_classifiers_options_are_terms_of_its_loss() -> None:
    off = {"entropy": 0.0, "balance": 0.0, "generated": 0.0}
    plain = loss_of("C", **off)
    model = sgan(**off)
    torch.manual_seed(3)
    x, y, unlabeled = next(iter(batches()))
    assert plain == pytest.approx(float(cross_entropy(model.classifier(x), y).detach()))
    probs = model.classifier(unlabeled).softmax(1).detach()
    entropy = -float((probs * probs.log()).sum(1).mean())
    balance = -float(probs.mean(0).log().mean())
    assert loss_of("C", **off | {"entropy": 2.0}) - plain == pytest.approx(2.0 * entropy, rel=1e-4)
    assert loss_of("C", **off | {"balance": 2.0}) - plain == pytest.approx(2.0 * balance, rel=1e-4)
    assert loss_of("C", **off | {"consistency": 2.0}) == pytest.approx(plain)  # without noise predictions agree
    assert loss_of("C", **off | {"generated": 1.0}) > plain + 0.1


def test_the_generators_reconstructions_are_terms_of_its_loss() -> None:
    whole, no_style, no_label = (loss_of("G", **o) for o in ({}, {"style": 0.0}, {"label": 0.0}))
    game = sgan().game()
    torch.manual_seed(3)
    _, values = game.phases[3].evaluate(next(iter(batches())))
    assert whole - no_style == pytest.approx(float(values["R_z"].detach()), rel=1e-4)
    assert whole - no_label == pytest.approx(float(values["R_y"].detach()), rel=1e-4)
    z, found = torch.randn(4, 3), torch.randn(4, 3)
    expected = -torch.distributions.Normal(found, 1.0).log_prob(z).sum(1).mean() - 1.5 * math.log(2.0 * math.pi)
    torch.testing.assert_close(style_reconstruction(z, found), expected)


def test_ramps_follow_the_epochs() -> None:
    model = sgan(generated=schedules.Linear(0.0, 1.0, 3, hold=True))
    seen: list[float] = []
    model.game().play(batches(), epochs=4, progress=False, callbacks=[lambda _: seen.append(model.weight("generated"))])
    assert seen == [0.5, 1.0, 1.0, 1.0]


def test_before_its_start_the_classifier_does_not_see_samples() -> None:
    """Until the ramp starts the classifier is, after each epoch, that of a game in which it learns from no samples."""

    def after_epochs(generated: Schedule) -> list[Tensor]:
        model, found = sgan(generated=generated), []
        keep = lambda _: found.append(nn.utils.parameters_to_vector(model.classifier.parameters()).detach())  # noqa: E731
        model.game().play(batches(), epochs=5, seed=0, progress=False, callbacks=[keep])
        return found

    late, never = after_epochs(LateRamp(0.5, 2, 2)), after_epochs(0.0)
    assert [torch.equal(one, other) for one, other in zip(late, never, strict=True)] == [True] * 3 + [False] * 2


def test_real_pairs_are_labeled_guessed_and_generated() -> None:
    """With labels alone the discriminator's loss does not depend on the classifier; with pseudo-labels it does."""

    def loss(change: Callable[[StructuredGAN], None], **options: Any) -> float:
        model = sgan(**options)
        change(model)
        torch.manual_seed(3)
        return float(model.game().phases[0].evaluate(next(iter(batches())))[0].detach())

    def other(model: StructuredGAN) -> None:
        torch.manual_seed(9)
        model.classifier = Joined(2, 3, (4,))

    keep = lambda model: None  # noqa: E731
    assert loss(keep, pseudo_labels=0.0) == pytest.approx(loss(other, pseudo_labels=0.0))
    assert abs(loss(keep, pseudo_labels=0.8) - loss(other, pseudo_labels=0.8)) > 1e-3
    assert loss(keep, pseudo_labels=0.0, generated_pairs=0.5) != pytest.approx(loss(keep, pseudo_labels=0.0))
    with pytest.raises(ValueError, match="pseudo_labels: together with generated_pairs"):
        SGANOptions(pseudo_labels=0.8, generated_pairs=0.3)


@pytest.mark.statistical
def test_classes_and_styles_are_told_apart() -> None:
    """Three blobs that the style moves: samples have their class, and the style that is inferred says little of it."""
    options = {"generated": 0.1, "pseudo_labels": 0.5}
    model = sgan(**options)
    game = model.game(lr=3e-3)
    model.pretraining(game).play(batches(), epochs=10, seed=0, progress=False)
    game.play(batches(100, 1000), epochs=40, seed=0, progress=False, callbacks=[DiscriminatorWatch("D_xy")])
    trained = model.averaged(game)
    x, y = rows(2000, 5)
    assert float((trained.classifier(x).argmax(1) == y).double().mean()) > 0.95
    assert controllability(trained, lambda made: -torch.cdist(made, CENTERS)) > 0.9
    assert style_information(trained, x, y) < 0.5 * math.log(3.0)


def test_style_information_is_known_in_closed_form() -> None:
    """A style that is the class says log 3 nats of it, one that is noise none."""

    class Told(nn.Module):
        def __init__(self, column: int) -> None:
            super().__init__()
            self.column = column

        def forward(self, x: Tensor) -> Tensor:
            return x[:, [self.column]]

    y = torch.arange(3).repeat(200)
    torch.manual_seed(0)
    x = torch.stack([y.float(), torch.randn(600)], 1)
    model = sgan()
    found = []
    for column in (0, 1):
        model.inference = Told(column)
        found.append(style_information(model, x, y))
    assert found[0] == pytest.approx(math.log(3.0), abs=0.05)
    assert found[1] < 0.05
    with pytest.raises(ValueError, match="y: expected a class for each input, two classes"):
        style_information(model, x, torch.zeros(600, dtype=torch.long))


def test_grids_and_transfers_have_a_class_and_a_style() -> None:
    model = sgan().eval()
    styles = torch.randn(4, 1)
    grid = style_grid(model, styles=styles)
    assert grid.shape == (3, 4, 2)
    torch.testing.assert_close(grid[2, 1], model.generator(torch.eye(3)[[2]], styles[[1]])[0].detach())
    x = rows(5, 1)[0]
    moved = style_transfer(model, x)
    assert moved.shape == (5, 3, 2)
    expected = model.generator(torch.eye(3)[[1]], model.inference(x[[4]]))[0].detach()  # type: ignore[misc]
    torch.testing.assert_close(moved[4, 1], expected)
    assert style_grid(model, 6).shape == (3, 6, 2)
    with pytest.raises(ValueError, match="sgan: it has no inference network"):
        style_transfer(sgan(style_game=False), x)


def test_the_conditional_baseline_has_three_players() -> None:
    model = sgan(style_game=False)
    history = model.game(decay_from=1, classifier_lr=1e-3).play(batches(), epochs=2, progress=False)
    assert {name for name in history.terms if name.endswith("loss")} == {"D_xy.loss", "G.loss", "C.loss"}
    with pytest.raises(ValueError, match="inference: the game of the style needs both"):
        StructuredGAN(Joined(4, 2), Joined(2, 3), Joined(5, 1), inference=Joined(2, 1), num_classes=3)


def test_bad_input_is_refused() -> None:
    x, y = rows(30, 1)
    with pytest.raises(ValueError, match=r"y: no labeled row of the classes \[3\]"):
        SemiSupervisedBatches(x, y, x, 4, batch_size=10)
    with pytest.raises(ValueError, match=r"y: no labeled row of the classes \[1, 2\]"):
        SemiSupervisedBatches(x, torch.zeros_like(y), x, 3, batch_size=10)
    with pytest.raises(ValueError, match=r"y: expected classes .* from 0 to 1"):
        SemiSupervisedBatches(x, y, x, 2, batch_size=10)
    with pytest.raises(ValueError, match="unlabeled: 30 rows are fewer"):
        SemiSupervisedBatches(x, y, x, 3, batch_size=40)
    with pytest.raises(ValueError, match="unlabeled: rows of shape"):
        SemiSupervisedBatches(x, y, torch.zeros(100, 3), 3, batch_size=10)
    with pytest.raises(TypeError, match=r"batch: expected \(x, y, unlabeled\)"):
        sgan().game().play([(x, y)], epochs=1, progress=False)
    with pytest.raises(ValueError, match="entropy"):
        SGANOptions(entropy=-1.0)
