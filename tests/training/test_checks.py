"""Bad arguments, loaders and batches."""

from __future__ import annotations

import functools
from typing import Any

import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoNormal
from torch import nn
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    RandomSampler,
    SequentialSampler,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from pyrobnn import likelihoods
from pyrobnn.guides import MAP, MeanField
from pyrobnn.model.supervised import SupervisedModel
from pyrobnn.training import fit
from tests.training.networks import data, loader, model, model_and_guide, same, tensors

quiet = functools.partial(fit, progress=False)


def refused(
    kind: type[Exception], match: str, batches: Any, *, built: nn.Module | None = None, **settings: Any
) -> None:
    """``fit`` refuses the batches and has changed nothing."""
    built = built or model()
    guide = MeanField(built)
    before = tensors(built, guide)
    with pytest.raises(kind, match=match):
        quiet(built, guide, batches, **settings)
    assert same(tensors(built, guide), before)
    assert built.training  # the mode it had


# --------------------------------------------------------------------------------------------------- arguments


def test_a_foreign_guide_is_sent_to_svi() -> None:
    with pytest.raises(TypeError, match=r"^guide: .*AutoNormal.*pyro\.infer\.SVI"):
        quiet(model(), AutoNormal(model()), loader())


def test_the_guide_of_another_model_is_refused() -> None:
    other = SupervisedModel(nn.Linear(3, 3), likelihoods.Categorical(), dist.Normal(0.0, 1.0), num_data=20)
    with pytest.raises(ValueError, match=r"^guide: it lacks the model's site 'net\.0\.weight'"):
        quiet(model(), MeanField(other), loader())


@pytest.mark.parametrize("epochs", [0, -1, 2.0, True, "3"])
def test_epochs_must_be_positive_ints(epochs: Any) -> None:
    refused(ValueError, r"^epochs: expected a positive int", loader(), epochs=epochs)


@pytest.mark.parametrize("patience", [0, -1, 2.0, True])
def test_patience_must_be_a_positive_int(patience: Any) -> None:
    refused(ValueError, r"^patience: expected a positive int", loader(), patience=patience, validation=loader())


def test_patience_needs_validation() -> None:
    refused(ValueError, r"^patience: .*validation=", loader(), patience=2)


@pytest.mark.parametrize("clip_norm", [0.0, -1.0, float("nan")])
def test_clip_norm_must_be_positive(clip_norm: float) -> None:
    refused(ValueError, r"^clip_norm: .*positive", loader(), clip_norm=clip_norm)


# ------------------------------------------------------------------------------------------------------ loaders


def test_a_data_set_of_another_size_is_refused() -> None:
    refused(ValueError, r"^num_data: .* 30 data, .* has 20", loader(), built=model(num_data=30))


@pytest.mark.parametrize(
    ("sampler", "right"),
    [
        (SubsetRandomSampler(range(12)), {12}),
        (SequentialSampler(range(12)), {12}),
        (RandomSampler(range(20), num_samples=12), {20}),
        (RandomSampler(range(20), replacement=True, num_samples=40), {20}),
        (DistributedSampler(range(20), num_replicas=2, rank=0), {20}),
        (WeightedRandomSampler([1.0] * 20, 12), {12, 20}),
    ],
    ids=lambda value: type(value).__name__,
)
def test_the_sampler_says_how_many_data_there_are(sampler: Any, right: set[int]) -> None:
    """Of a subset it alone does; a sampler that draws some of all the data for each epoch has all of them."""
    for num_data in (12, 20, 40, 10):
        built = model(num_data=num_data)
        batches = loader(sampler=sampler, batch_size=4)
        if num_data in right:
            assert quiet(built, MeanField(built), batches, epochs=1).epochs == 1
        else:
            refused(
                ValueError, rf"^num_data: .* {num_data} data, .* has (12|20) rows; .*=(12|20)", batches, built=built
            )


@pytest.mark.parametrize("num_data", [12, 20])
def test_the_sampler_of_batches_counts_if_it_has_one(num_data: int) -> None:
    built = model(num_data=num_data)
    sampler = BatchSampler(SubsetRandomSampler(range(12)), 4, drop_last=False)
    batches = DataLoader(TensorDataset(*data()), batch_sampler=sampler)
    if num_data == 12:
        assert quiet(built, MeanField(built), batches, epochs=1).epochs == 1
    else:
        refused(ValueError, r"^num_data: .* 20 data, .* sampler has 12", batches, built=built)


@pytest.mark.parametrize("num_data", [12, 20, 16])
def test_batches_chosen_by_hand_are_counted(num_data: int) -> None:
    """The rows of a pass, or those of the data set, if some are left out of a pass (as ``drop_last`` does)."""
    built = model(num_data=num_data)
    batches = DataLoader(TensorDataset(*data()), batch_sampler=[range(0, 6), range(6, 12)])  # type: ignore[arg-type]
    if num_data == 16:
        with pytest.raises(ValueError, match=r"^num_data: .* 16 data, .* yielded 12 rows"):
            quiet(built, MeanField(built), batches, epochs=1)
    else:
        assert quiet(built, MeanField(built), batches, epochs=1).epochs == 1


def test_a_reader_may_make_other_rows_of_the_data_set() -> None:
    """Ten items of two rows each are 20 rows, and N is that of rows."""
    x, y = data()
    batches = DataLoader(TensorDataset(x.view(10, 2, 3), y.view(10, 2)), batch_size=4)
    built = model()
    history = quiet(
        built, MeanField(built), batches, epochs=1, batch=lambda raw: (raw[0].flatten(0, 1), raw[1].flatten())
    )
    assert history.epochs == 1
    built = model(num_data=15)
    with pytest.raises(ValueError, match=r"^num_data: .* 15 data, .* yielded 20 rows"):
        quiet(built, MeanField(built), batches, epochs=1, batch=lambda raw: (raw[0].flatten(0, 1), raw[1].flatten()))


def test_a_reader_must_be_a_function() -> None:
    refused(TypeError, r"^batch: expected a function from a batch to \(inputs, targets\), got 'y'", loader(), batch="y")


def test_a_subset_has_the_posterior_of_the_subset() -> None:
    """A linear regression on 12 of 20 rows: the mode is the sum of xy over 1 + the sum of squares, of the 12."""
    x, y = (torch.randn(20, 1, generator=torch.Generator().manual_seed(seed)).double() for seed in (8, 9))
    net = nn.Linear(1, 1, bias=False).double()
    built = SupervisedModel(net, likelihoods.Normal(1.0), dist.Normal(0.0, 1.0), num_data=12).double()
    guide = MAP(built).double()
    batches = DataLoader(TensorDataset(x, y), batch_size=12, sampler=SubsetRandomSampler(range(12)))
    quiet(built, guide, batches, epochs=100, lr=0.5, optimizer=torch.optim.SGD)
    expected = (x[:12] * y[:12]).sum() / (1.0 + x[:12].square().sum())
    torch.testing.assert_close(guide.flat_loc.detach().squeeze(), expected)


def test_a_list_of_batches_of_another_size_is_refused() -> None:
    built = model(num_data=30)
    with pytest.raises(ValueError, match=r"^num_data: .* 30 data, .* batches have 20 rows.*num_data=20"):
        quiet(built, MeanField(built), [data()])


def test_dropped_rows_are_no_other_size() -> None:
    """With ``drop_last`` a pass sees 16 of the 20 data, and N stays 20."""
    assert quiet(*model_and_guide(), loader(drop_last=True), epochs=1).steps == 2


@pytest.mark.parametrize("empty", [[], loader(batch_size=64, drop_last=True)], ids=["list", "drop_last"])
def test_an_empty_loader_is_refused(empty: Any) -> None:
    refused(ValueError, r"^loader: it yielded no batch", empty)


def test_an_empty_data_set_is_refused() -> None:
    refused(ValueError, r"^num_data: .* has 0", DataLoader(TensorDataset(torch.zeros(0, 3), torch.zeros(0).long())))


def test_an_empty_validation_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^validation: it yielded no batch"):
        quiet(*model_and_guide(), loader(), validation=[])


@pytest.mark.parametrize("argument", ["loader", "validation"])
def test_a_generator_lasts_one_epoch(argument: str) -> None:
    once = (batch for batch in loader())
    batches = {"loader": loader(), "validation": loader()} | {argument: once}
    with pytest.raises(TypeError, match=rf"^{argument}: a generator is used up"):
        quiet(*model_and_guide(), batches["loader"], validation=batches["validation"], epochs=2)
    assert quiet(*model_and_guide(), (batch for batch in loader()), epochs=1).steps == 3


@pytest.mark.parametrize(
    ("batch", "kind"),
    [
        (torch.zeros(20, 3), "Tensor"),
        ((torch.zeros(20, 3),), "tuple of length 1"),
        ((*data(), torch.zeros(20), 1), "tuple of length 4"),
        ({"x": data()[0], "t": data()[1]}, "dict with 'x', 't'"),
        (None, "NoneType"),
        ("xy", "str"),
    ],
)
def test_a_batch_must_be_of_a_known_form(batch: Any, kind: str) -> None:
    refused(TypeError, rf"^loader: expected batches \(x, y\), .* got a {kind}; pass batch=", [batch])


def test_targets_must_be_tensors() -> None:
    refused(TypeError, r"^loader: the targets y of a batch are a list", [(data()[0], data()[1].tolist())])


def test_a_data_set_instead_of_a_loader_is_recognized() -> None:
    refused(ValueError, r"^loader: .*single number; wrap the data set in a DataLoader", TensorDataset(*data()))


# ------------------------------------------------------------------------------------------------------- values


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_inputs_that_are_not_finite_are_refused(bad: float) -> None:
    x, y = data()
    x[5, 1] = x[17, 0] = bad
    refused(ValueError, r"^x: batch 0 holds NaN or infinite inputs in 2 rows \(the first is row 5\)", [(x, y)])


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_batch_without_rows_is_refused_by_its_number(accumulate: int) -> None:
    x, y = data()
    refused(ValueError, r"^loader: batch 0 has no rows", [(x[:0], y[:0]), (x, y)], accumulate=accumulate)


def test_the_batch_with_nan_is_named() -> None:
    x, y = data()
    x[17, 0] = float("nan")
    with pytest.raises(ValueError, match=r"^x: batch 2 .* in 1 rows \(the first is row 1\)"):
        quiet(*model_and_guide(), DataLoader(TensorDataset(x, y), 8))


def test_inputs_that_cancel_or_overflow_are_looked_at_closely() -> None:
    """A sum that overflows is no NaN among the inputs; infinities that cancel are found."""
    x, y = data()
    huge = x.clone()
    huge[:, 0] = 3e38
    with torch.no_grad():
        built = SupervisedModel(_Ignores(), likelihoods.Categorical(), dist.Normal(0.0, 1.0), num_data=20)
        assert torch.isinf(huge.sum())
    assert quiet(built, MeanField(built), [(huge, y)], epochs=1).epochs == 1
    x[0, 0], x[1, 0] = float("inf"), -float("inf")
    refused(ValueError, r"^x: batch 0 .* in 2 rows", [(x, y)])


class _Ignores(nn.Module):
    """A network that does not look at its first input."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x[:, 1:])


@pytest.mark.parametrize("label", [3, -1])
def test_labels_outside_the_classes_are_refused(label: int) -> None:
    x, y = data()
    y[3] = label
    refused(ValueError, r"^y: Categorical expects integer labels from 0 to 2", [(x, y)])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bool])
def test_labels_of_another_dtype_are_refused(dtype: torch.dtype) -> None:
    x, y = data()
    refused(TypeError, rf"^y: Categorical expects integer labels .*{dtype}", [(x, y.to(dtype))])


def test_labels_of_another_shape_are_refused() -> None:
    x, y = data()
    refused(ValueError, r"^y: Categorical expects targets of shape \(20,\)", [(x, y.unsqueeze(1))])


def test_targets_that_would_broadcast_are_refused() -> None:
    built = SupervisedModel(nn.Linear(3, 1), likelihoods.Normal(1.0), dist.Normal(0.0, 1.0), num_data=20)
    refused(ValueError, r"^y: Normal expects targets of shape \(20, 1\)", [(data()[0], torch.zeros(20))], built=built)


def test_validation_targets_that_would_broadcast_are_refused() -> None:
    built = SupervisedModel(nn.Linear(3, 1), likelihoods.Normal(1.0), dist.Normal(0.0, 1.0), num_data=20)
    x, y = data()[0], torch.zeros(20, 1)
    with pytest.raises(ValueError, match=r"^y: Normal expects targets of shape \(20, 1\)"):
        quiet(built, MeanField(built), [(x, y)], validation=[(x, y.squeeze(1))])


def test_the_checks_draw_nothing() -> None:
    """The look at the targets in the first epoch leaves the random state as it was: a run of two epochs begins
    like a run of one."""
    one, two = model_and_guide(batch_norm=True), model_and_guide(batch_norm=True)
    first = quiet(*one, loader(), epochs=1, seed=0)
    assert quiet(*two, loader(), epochs=2, seed=0).elbo[0] == first.elbo[0]
    assert int(one[0].net.network[1].num_batches_tracked) == 3
