"""Frozen parameters that a model shares with the network it was made from."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import pyrobnn as pb
from pyrobnn.model.shared import own_state, shared_digest, shared_parameters
from pyrobnn.training.state import read_tensors


def frozen_trunk() -> nn.Sequential:
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    net[0].requires_grad_(False)
    return net


def model_of(net: nn.Module, share_frozen: bool = True) -> pb.SupervisedModel:
    return pb.SupervisedModel(pb.bayesianize(net, share_frozen=share_frozen), pb.likelihoods.Categorical(), num_data=5)


def places(net: nn.Module) -> dict[str, int]:
    return {name: parameter.data_ptr() for name, parameter in net.named_parameters()}


def test_only_frozen_parameters_are_shared() -> None:
    net = frozen_trunk()
    own = places(model_of(net).net.network)
    assert {name for name, place in places(net).items() if own[name] == place} == {"0.weight", "0.bias"}
    assert not set(places(model_of(net, share_frozen=False).net.network).values()) & set(places(net).values())


def test_a_random_frozen_parameter_has_a_placeholder_of_its_own_name() -> None:
    """Named in a rule it is a site, so it is no shared parameter, though it began as one."""
    net = frozen_trunk()
    rules = [("0.weight", torch.distributions.Normal(0.0, 1.0)), ("*", None)]
    network = pb.bayesianize(net, [(p, None if r is None else pb.priors.he()) for p, r in rules], share_frozen=True)
    assert network.shared == {"0.bias"}


def test_a_moved_copy_leaves_the_original() -> None:
    net = frozen_trunk()
    model_of(net).double()
    assert {p.dtype for p in net.parameters()} == {torch.float32}


def test_states_of_training_leave_them_out() -> None:
    model = model_of(frozen_trunk())
    guide = pb.guides.MeanField(model)
    assert set(shared_parameters(model)) == {"net.net.0.weight", "net.net.0.bias"}
    names = set(model.state_dict()) - set(own_state(model))
    assert names == set(shared_parameters(model))
    assert not names & set(read_tensors(model, guide)["model"])
    assert own_state(model_of(frozen_trunk(), share_frozen=False)).keys() == model.state_dict().keys()


def test_training_and_going_back_to_the_best_epoch_leave_the_original() -> None:
    net = frozen_trunk()
    before = {name: parameter.clone() for name, parameter in net.named_parameters()}
    model = model_of(net)
    guide = pb.guides.MeanField(model)
    loader: list[tuple[Tensor, Tensor]] = [(torch.randn(5, 3), torch.tensor([0, 1, 1, 0, 1]))]
    pb.fit(model, guide, loader, epochs=3, validation=loader, patience=1, progress=False)
    assert all(torch.equal(parameter, before[name]) for name, parameter in net.named_parameters())


def test_a_thawed_parameter_is_refused() -> None:
    model = model_of(frozen_trunk())
    model.net.network.get_parameter("0.weight").requires_grad_(True)
    with pytest.raises(ValueError, match=r"model: the parameter 'net.net.0.weight' .* must stay frozen"):
        own_state(model)


def test_the_digest_is_that_of_names_and_values() -> None:
    net = frozen_trunk()
    digest = shared_digest(model_of(net))
    assert digest == shared_digest(model_of(net))
    assert shared_digest(model_of(net, share_frozen=False)) is None
    with torch.no_grad():
        net.get_parameter("0.bias")[0] += 1e-6
    assert digest != shared_digest(model_of(net))


def test_a_checkpoint_has_only_what_is_the_models_own(tmp_path: Path) -> None:
    """It is filled into the same base only, and shares it again."""
    net = frozen_trunk()
    model = model_of(net)
    guide = pb.guides.MeanField(model)
    pb.save(tmp_path, model, guide)
    loaded, posterior = pb.load(tmp_path, net)
    x = torch.randn(4, 3)
    assert torch.equal(pb.predict(loaded, posterior, x, seed=0).mean, pb.predict(model, guide, x, seed=0).mean)
    assert loaded.net.network.get_parameter("0.weight").data_ptr() == net.get_parameter("0.weight").data_ptr()
    other = frozen_trunk()
    with pytest.raises(ValueError, match="net: its frozen parameters, which the saved model shared"):
        pb.load(tmp_path, other)
    other.load_state_dict(net.state_dict())
    pb.load(tmp_path, other)
    with pytest.raises(ValueError, match="net: its frozen parameters, which the saved model shared"):
        pb.load(tmp_path, other.requires_grad_(True))


def test_fresh_members_do_not_write_to_the_base() -> None:
    """The layers' own reset_parameters() runs on copies without the shared values."""
    net = frozen_trunk()
    before = net.get_parameter("0.weight").clone()
    guide = pb.guides.DeltaMixture(model_of(net), num_members=3)
    pb.guides.MeanField(model_of(net), init="he")
    assert torch.equal(net.get_parameter("0.weight"), before)
    assert len(guide.atoms(torch.arange(3))["net.2.weight"].unique(dim=0)) == 3


def test_a_run_is_resumed_on_the_same_base_only(tmp_path: Path) -> None:
    net = frozen_trunk()
    loader: list[tuple[Tensor, Tensor]] = [(torch.randn(5, 3), torch.tensor([0, 1, 1, 0, 1]))]

    def fit(net: nn.Module, epochs: int, resume: bool) -> pb.History:
        model = model_of(net)
        guide = pb.guides.MeanField(model)
        return pb.fit(model, guide, loader, epochs=epochs, checkpoint=tmp_path, resume=resume, progress=False)

    fit(net, 2, False)
    assert fit(net, 3, True).epochs == 3
    with torch.no_grad():
        net.get_parameter("0.bias")[0] += 1.0
    with pytest.raises(ValueError, match="checkpoint: it is that of another frozen base"):
        fit(net, 4, True)
