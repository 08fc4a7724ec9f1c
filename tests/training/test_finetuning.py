"""Fine-tuning: where it starts, what it returns, that it learns, and what it refuses."""

from __future__ import annotations

import math
from functools import partial
from typing import Any, ClassVar

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.utils.data import DataLoader, SubsetRandomSampler, TensorDataset

import pyrobnn as pb
from pyrobnn import priors
from pyrobnn.estimators import PerGroup
from pyrobnn.guides import DeltaMixture, Guide, LowRankEnsemble, LowRankNormal, MeanField
from pyrobnn.model.substitution import SubstituteMessenger
from pyrobnn.objectives import RegularizedELBO, perturbed
from pyrobnn.training.finetuning import frozen_batch_norm

POSTERIORS: dict[str, type[Guide]] = {
    "mean_field": MeanField,
    "last_layer": MeanField,
    "delta_mixture": DeltaMixture,
    "low_rank_sharing": LowRankEnsemble,
}
each_posterior = pytest.mark.parametrize("posterior", POSTERIORS)


def data() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(60, 2, generator=generator)
    return x, (x[:, 0] * x[:, 1] > 0).long()


def loader() -> DataLoader[Any]:
    return DataLoader(TensorDataset(*data()), 20)


def pretrained() -> nn.Module:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(2, 16), nn.BatchNorm1d(16), nn.Tanh(), nn.Linear(16, 2))
    optimizer = torch.optim.Adam(net.parameters(), lr=0.05)
    x, y = data()
    for _ in range(150):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        optimizer.step()
    return net.eval()


@each_posterior
def test_accuracy_stays_and_the_network_is_not_touched(posterior: Any) -> None:
    net = pretrained()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    model, guide = pb.finetune(net, loader(), posterior, epochs=3, num_members=3, seed=0, progress=False)
    assert type(guide) is POSTERIORS[posterior] and model.num_data == 60
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    x, y = data()
    trained = (net(x).argmax(-1) == y).float().mean()
    tuned = (pb.predict(model, guide, x, num_samples=30, seed=0).mean.argmax(-1) == y).float().mean()
    assert float(tuned) >= float(trained) - 0.05


def test_scales_start_small_and_move_faster_than_means() -> None:
    net = pretrained()
    start = torch.cat([net.get_parameter(n).detach().flatten() for n in ("0.weight", "0.bias", "3.weight", "3.bias")])
    _, untouched = pb.finetune(net, loader(), epochs=1, lr=0.0, scale_lr=0.0, seed=0, progress=False)
    assert isinstance(untouched, MeanField)
    torch.testing.assert_close(untouched.flat_loc.detach(), start)
    scales = untouched.flat_log_scale.detach()
    assert -6.0 <= float(scales.min()) < float(scales.max()) <= -5.0 and float(scales.std()) > 0.1
    _, guide = pb.finetune(net, loader(), epochs=2, lr=1e-4, scale_lr=1e-2, seed=0, progress=False)
    assert isinstance(guide, MeanField)
    moved = guide.flat_loc.detach() - start, guide.flat_log_scale.detach() - scales
    assert float(moved[0].abs().max()) < 1e-3 < float(moved[1].abs().max())


@each_posterior
def test_a_seed_fixes_everything(posterior: Any) -> None:
    runs = []
    for before in (10, 11):
        net = pretrained()
        torch.manual_seed(before)
        runs.append(pb.finetune(net, loader(), posterior, epochs=1, seed=3, progress=False)[1])
    for a, b in zip(*(guide.parameters() for guide in runs), strict=True):
        assert torch.equal(a, b)


def test_last_layer_leaves_the_rest_deterministic() -> None:
    model, guide = pb.finetune(pretrained(), loader(), "last_layer", epochs=1, progress=False)
    assert set(guide.layout) == {"net.3.weight", "net.3.bias"}
    assert {row["status"] for row in pb.describe(model).rows if row["parameter"].startswith("0")} == {"deterministic"}


class HeadFirst(nn.Module):
    """The last layer to run is defined first."""

    def __init__(self) -> None:
        super().__init__()
        self.head, self.body = nn.Linear(4, 2), nn.Linear(2, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.body(x)))


def test_last_layer_is_what_runs_last() -> None:
    for batches in (loader(), iter(loader())):
        _, guide = pb.finetune(HeadFirst(), batches, "last_layer", epochs=1, num_data=60, progress=False)
        assert set(guide.layout) == {"net.head.weight", "net.head.bias"}


def test_default_prior_is_weight_decay_and_others_are_taken() -> None:
    _, guide = pb.finetune(pretrained(), loader(), epochs=1, progress=False)
    prior: Any = guide.layout["net.0.weight"].prior
    assert float(prior.base_dist.scale.flatten()[0]) == pytest.approx((2e-4 * 60) ** -0.5)
    net = pretrained()
    _, guide = pb.finetune(net, loader(), prior=priors.centered(0.1), epochs=1, progress=False)
    prior = guide.layout["net.0.weight"].prior
    torch.testing.assert_close(prior.base_dist.loc, net.get_parameter("0.weight").detach())


def test_auxiliary_inputs_are_used() -> None:
    seen = []

    def auxiliary(x: Tensor) -> Tensor:
        seen.append(len(x))
        return x + 3.0

    pb.finetune(pretrained(), loader(), auxiliary=auxiliary, epochs=2, progress=False)
    assert seen.count(20) >= 6


@each_posterior
def test_draws_learn_to_disagree_on_auxiliary_inputs(posterior: Any) -> None:
    """At the defaults; only the last layer alone has too little to disagree with."""
    far, levels = 4.0 * data()[0][:20], []
    for auxiliary in (None, [far]):
        settings = {"epochs": 60, "num_members": 3, "seed": 0, "progress": False}
        model, guide = pb.finetune(pretrained(), loader(), posterior, auxiliary=auxiliary, **settings)
        levels.append(float(pb.predict(model, guide, far, num_samples=60, seed=0).epistemic.mean()))
    assert levels[1] > (1.2 if posterior == "last_layer" else 2.0) * levels[0]


class Recorded(RegularizedELBO):
    """Keeps the estimators it is given."""

    chosen: ClassVar[list[Any]] = []

    def __init__(self, *args: Any, estimator: Any = None, **kwargs: Any) -> None:
        self.chosen.append(estimator)
        super().__init__(*args, estimator=estimator, **kwargs)


def chosen_estimator(posterior: Any, **settings: Any) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pyrobnn.training.finetuning.RegularizedELBO", Recorded)
        pb.finetune(pretrained(), loader(), posterior, auxiliary=[data()[0]], epochs=1, progress=False, **settings)
    return Recorded.chosen.pop()


@pytest.mark.parametrize("most", [0, 10**6])
def test_the_estimator_of_auxiliary_inputs_depends_on_the_number_of_weights(
    most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pyrobnn.training.finetuning.MOST_PER_EXAMPLE", most)
    assert chosen_estimator("mean_field") == ("per_example" if most else "flipout")
    assert chosen_estimator("mean_field", estimator="per_group") == "per_group"


@pytest.mark.parametrize("posterior", ["delta_mixture", "low_rank_sharing"])
def test_members_share_the_batch_where_auxiliary_inputs_are(posterior: str) -> None:
    chosen = chosen_estimator(posterior, num_members=3)
    assert isinstance(chosen, PerGroup) and chosen.groups == 3
    assert chosen_estimator(posterior, estimator="shared") == "shared"
    assert chosen_estimator(posterior, batch_norm="train") is None
    model, guide = pb.finetune(pretrained(), loader(), posterior, epochs=1, progress=False)
    assert guide.step(model).num_samples(1) == 1, "without them all members run in one vectorized pass"


def test_an_epoch_that_ends_with_a_few_rows() -> None:
    """Fewer than there are members."""
    batches = DataLoader(TensorDataset(*data()), 29)
    _, guide = pb.finetune(
        pretrained(), batches, "low_rank_sharing", auxiliary=perturbed(0.5), epochs=1, progress=False
    )
    assert guide.facts.num_training_draws == 5


def test_auxiliary_inputs_with_a_posterior_that_has_one_draw_only() -> None:
    _, guide = pb.finetune(
        pretrained(), loader(), lambda m: LowRankNormal(m, rank=2), auxiliary=[data()[0]], epochs=1, progress=False
    )
    assert isinstance(guide, LowRankNormal)


def test_a_function_builds_the_guide_and_regression_works() -> None:
    net = nn.Linear(2, 1)
    x, _ = data()
    batches = DataLoader(TensorDataset(x, x.sum(-1, keepdim=True)), 30)
    likelihood = pb.likelihoods.Normal(0.5, learn_scale=True)
    model, guide = pb.finetune(
        net, batches, lambda m: LowRankNormal(m, rank=2), likelihood=likelihood, epochs=1, progress=False
    )
    assert isinstance(guide, LowRankNormal)
    assert model.likelihood is not likelihood


class Named(nn.Module):
    """Takes its input by name and returns its logits among other things."""

    def __init__(self) -> None:
        super().__init__()
        self.net = pretrained()

    def forward(self, features: Tensor) -> dict[str, Tensor]:
        logits = self.net(features)
        return {"loss": logits.sum(), "logits": logits}


def test_mappings_and_named_outputs_are_fine_tuned_as_pairs_are() -> None:
    """And a sampler of a subset tells how many data there are."""
    x, y = data()

    def collate(rows: list[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
        return {"features": torch.stack([x for x, _ in rows]), "labels": torch.stack([y for _, y in rows])}

    states = []
    for net, options, chosen in ((pretrained(), {}, {}), (Named(), {"collate_fn": collate}, {"output": "logits"})):
        sampler = SubsetRandomSampler(range(10), generator=torch.Generator().manual_seed(1))
        subset = DataLoader(TensorDataset(x, y), batch_size=4, sampler=sampler, **options)
        model, guide = pb.finetune(net, subset, epochs=1, seed=0, progress=False, **chosen)
        assert model.num_data == 10
        states.append(guide.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(*(state.values() for state in states), strict=True))


def test_dropout_falls_silent() -> None:
    net = nn.Sequential(nn.Linear(2, 64), nn.Dropout(0.9), nn.Linear(64, 2))
    model, _ = pb.finetune(net, loader(), epochs=1, progress=False)
    silent = model.net.network.train()
    assert torch.equal(silent(data()[0]), silent(data()[0])) and net[1].p == 0.9


def test_a_network_of_torchvision() -> None:
    torch.manual_seed(0)
    net = torchvision.models.resnet18(weights=None, num_classes=3)
    images = DataLoader(TensorDataset(torch.randn(4, 3, 32, 32), torch.tensor([0, 1, 2, 0])), 4)
    model, guide = pb.finetune(net, images, "last_layer", epochs=1, progress=False)
    assert pb.predict(model, guide, torch.randn(2, 3, 32, 32), num_samples=2).mean.shape == (2, 3)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"posterior": "flow"}, ValueError, r"posterior: expected 'mean_field'.*got 'flow'"),
        ({"posterior": 3}, TypeError, r"posterior: expected a name or a function"),
        ({"loader": iter([data()])}, TypeError, r"num_data: the loader has no data set of known length"),
        ({"threshold": 0.9, "auxiliary": [data()[0]]}, ValueError, r"threshold: .*ln 2"),
    ],
)
def test_refusals(change: dict[str, Any], error: type[Exception], message: str) -> None:
    arguments: dict[str, Any] = {"net": pretrained(), "loader": loader(), "epochs": 1, "progress": False} | change
    with pytest.raises(error, match=message):
        pb.finetune(**arguments)


@pytest.mark.parametrize("epochs", [2, 20])
def test_scales_rise_alike_however_long_it_lasts(epochs: int) -> None:
    """By default Adam moves log scales by at most 1 in all, but for Adam's overshoot."""
    _, untouched = pb.finetune(pretrained(), loader(), epochs=1, lr=0.0, scale_lr=0.0, seed=0, progress=False)
    _, guide = pb.finetune(pretrained(), loader(), epochs=epochs, lr=0.0, seed=0, progress=False)
    rise = (guide.flat_log_scale - untouched.flat_log_scale).detach()
    assert float(rise.abs().max()) < 1.1
    assert float(rise.mean()) > (0.03 * epochs * len(loader()) * 0.8 if epochs == 2 else 0.8)


def learning_rates(**options: Any) -> list[list[float]]:
    """Those of means and scales in each epoch."""
    net, seen = pretrained(), list[list[float]]()

    class Watched(torch.optim.Adam):
        def step(self, *args: Any, **kwargs: Any) -> Any:
            seen.append([group["lr"] for group in self.param_groups])
            return super().step(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim, "Adam", Watched)
        pb.finetune(net, loader(), progress=False, **options)
    return seen[:: len(loader())]


def test_learning_rates_fall_along_a_cosine() -> None:
    """Their mean is half the highest; scales have far to go, so theirs is what the rise asks for."""
    rates = learning_rates(epochs=4, lr=1e-3)
    shares = [0.5 + 0.5 * math.cos(math.pi * (epoch + 0.5) / 4) for epoch in range(4)]
    assert [mean for mean, _ in rates] == pytest.approx([1e-3 * share for share in shares])
    assert sum(scale for _, scale in rates) / 4 == pytest.approx(min(0.03, 1 / (4 * len(loader()))))
    assert learning_rates(epochs=1, lr=1e-3)[0][0] == pytest.approx(5e-4)


def test_the_default_rate_with_auxiliary_inputs_falls_with_depth() -> None:
    """The network has two weight matrices; the vectors of its batch normalization do not count."""
    assert learning_rates(epochs=1, auxiliary=perturbed(0.1))[0][0] == pytest.approx(8e-3 / 2 / 2)
    assert learning_rates(epochs=1)[0][0] == pytest.approx(1e-4)


def test_factors_learn_faster_than_weights_where_members_are_to_disagree() -> None:
    for auxiliary, ratio in ((None, 1.0), (perturbed(0.1), 20.0)):
        weights, factors = learning_rates(posterior="low_rank_sharing", auxiliary=auxiliary, epochs=1, lr=1e-3)[0]
        assert (weights, factors) == pytest.approx((5e-4, ratio * 5e-4))
    assert learning_rates(posterior="low_rank_sharing", epochs=1, scale_lr=0.3)[0][1] == pytest.approx(0.15)


def test_a_schedule_of_ones_own_is_taken() -> None:
    constant = learning_rates(epochs=2, lr=1e-3, scheduler=None)
    assert constant == [[1e-3, pytest.approx(0.03)]] * 2
    halved = partial(torch.optim.lr_scheduler.StepLR, step_size=1, gamma=0.5)
    assert learning_rates(epochs=2, lr=1e-3, scale_lr=0.01, scheduler=halved) == [[1e-3, 0.01], [5e-4, 0.005]]
    sgd = partial(torch.optim.SGD, momentum=0.9)
    _, guide = pb.finetune(pretrained(), loader(), epochs=2, optimizer=sgd, progress=False)
    assert isinstance(guide, MeanField)


def batch_norm_of(model: pb.SupervisedModel) -> nn.BatchNorm1d:
    return next(module for module in model.modules() if isinstance(module, nn.BatchNorm1d))


@each_posterior
def test_batch_norm_keeps_its_statistics_unless_it_is_to_be_trained(posterior: Any) -> None:
    net = pretrained()
    kept = net.get_submodule("1").running_mean.clone()
    options: dict[str, Any] = {"epochs": 2, "num_members": 3, "seed": 0, "progress": False}
    model, guide = pb.finetune(net, loader(), posterior, auxiliary=perturbed(0.5), **options)
    assert torch.equal(batch_norm_of(model).running_mean, kept)
    assert not batch_norm_of(model)._forward_pre_hooks
    draws = guide.sample(2)
    buffers = getattr(draws, "buffers", {})
    assert all(bool((value == kept).all()) for name, value in buffers.items() if name.endswith("running_mean"))
    model, _ = pb.finetune(net, loader(), posterior, batch_norm="train", **options)
    if posterior in ("mean_field", "last_layer"):  # members have statistics of their own
        assert not torch.equal(batch_norm_of(model).running_mean, kept)
    with pytest.raises(ValueError, match="batch_norm: expected 'freeze' or 'train', got 'eval'"):
        pb.finetune(net, loader(), posterior, batch_norm="eval", **options)  # type: ignore[arg-type]


def test_what_is_fine_tuned_is_what_predicts() -> None:
    """In training mode, within the block, outputs are those of evaluation mode."""
    net = pretrained()
    model, guide = pb.finetune(net, loader(), epochs=1, lr=0.0, scale_lr=0.0, seed=0, progress=False)
    x, _ = data()
    values = guide.rsample()
    with SubstituteMessenger(values), torch.no_grad():
        expected = model.eval().predictive(x)
    model.train()
    with frozen_batch_norm(model), SubstituteMessenger(values), torch.no_grad():
        assert torch.equal(model.predictive(x), expected)
    model.train()
    with SubstituteMessenger(values), torch.no_grad():
        assert not torch.allclose(model.predictive(x), expected, atol=1e-3)


class _Twice(nn.Module):
    """Runs its body twice in training and keeps the largest difference."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body, self.last, self.norm, self.gaps = body, nn.Linear(8, 1), nn.BatchNorm1d(8), []

    def forward(self, x: Tensor) -> Tensor:
        first, second = (self.norm((h[0] if isinstance(h := self.body(x), tuple) else h).mean(1)) for _ in range(2))
        self.gaps.append(float((first - second).detach().abs().max()))
        return self.last(first)


class _Functional(nn.Module):
    """Dropout that no module shows."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.dropout(self.layer(x), 0.5, self.training)


@pytest.mark.parametrize("batch_norm", ["freeze", "train"])
@pytest.mark.parametrize(
    "body",
    [
        nn.LSTM(8, 8, 2, dropout=0.5, batch_first=True),
        nn.TransformerEncoderLayer(8, 2, 16, dropout=0.5, batch_first=True),
        nn.Sequential(nn.Linear(8, 8), nn.FeatureAlphaDropout(0.5)),
        _Functional(),
    ],
    ids=lambda body: type(body).__name__,
)
def test_no_dropout_is_left(body: nn.Module, batch_norm: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    data = TensorDataset(torch.randn(20, 5, 8, generator=generator), torch.randn(20, 1, generator=generator))
    model, _ = pb.finetune(
        _Twice(body),
        DataLoader(data, batch_size=10),
        likelihood=pb.likelihoods.Normal(0.5),
        epochs=1,
        progress=False,
        batch_norm=batch_norm,
    )
    network = model.net.network
    assert len(network.gaps) >= 2
    assert max(network.gaps[2:] if isinstance(body, _Functional) else network.gaps) == 0.0  # two runs find it
    assert (int(network.norm.num_batches_tracked) > 0) is (batch_norm == "train")
