"""What does not synchronize processes refuses to run in a group of several, unless they are declared independent."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import pyro.distributions as dist
import pytest
import torch
import torch.distributed
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.nn.parallel import DistributedDataParallel

import pyrobnn as pb
from pyrobnn.distillation import online_distill
from pyrobnn.guides import MAP, Laplace, MeanField
from pyrobnn.sampling import SGLD

X, Y = torch.randn(8, 2), torch.randn(8, 1)
LOADER = [(X, Y)]
SHORT = {"epochs": 1, "progress": False}


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 1))


def built(net: nn.Module | None = None) -> pb.SupervisedModel:
    net = network() if net is None else net
    return pb.SupervisedModel(net, pb.likelihoods.Normal(0.1), dist.Normal(0.0, 1.0), num_data=8)


MODEL = built()
PLAIN = built(nn.Linear(2, 1))
GUIDE = MAP(MODEL)
CALLS: dict[str, Callable[[], object]] = {
    "fit": lambda: pb.fit(MODEL, GUIDE, LOADER, **SHORT),
    "sample": lambda: pb.sample(PLAIN, LOADER, kernel=SGLD(1e-5), num_samples=2, progress=False),
    "Laplace.fit": lambda: Laplace(PLAIN).fit(PLAIN, LOADER),
    "finetune": lambda: pb.finetune(network(), LOADER, likelihood=pb.likelihoods.Normal(0.1), num_data=8, **SHORT),
    "tune_prior": lambda: pb.tune_prior(PLAIN, LOADER, rounds=1, epochs=1),
    "recalibrate_batch_norm": lambda: pb.recalibrate_batch_norm(MODEL, GUIDE, LOADER),
    "distill": lambda: pb.distill(MeanField(PLAIN), batch_size=4, steps=1, components=3, progress=False),
    "online_distill": lambda: online_distill(
        PLAIN, LOADER, kernel=SGLD(1e-5), num_samples=4, buffer_size=4, batch_size=4, steps=1, progress=False
    ),
}
"""All that trains or samples."""


@pytest.fixture
def group_of_one() -> Iterator[None]:
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.fixture
def group_of_three(group_of_one: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A group that says that it has three processes: nothing may wait for the others."""
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 3)


@pytest.mark.parametrize("name", CALLS)
def test_what_trains_refuses_a_group(name: str, group_of_three: None) -> None:
    before = {key: value.clone() for key, value in {**MODEL.state_dict(), **GUIDE.state_dict()}.items()}
    with pytest.raises(RuntimeError, match=rf"^{name}: .* has 3 processes.*pyrobnn\.independent_processes\(\)"):
        CALLS[name]()
    after = {**MODEL.state_dict(), **GUIDE.state_dict()}
    assert all(torch.equal(value, after[key]) for key, value in before.items())


@pytest.mark.parametrize("name", CALLS)
def test_independent_processes_may(name: str, group_of_three: None) -> None:
    with pb.independent_processes():
        CALLS[name]()


def test_one_process_may(group_of_one: None) -> None:
    CALLS["fit"]()


def test_the_declaration_ends_with_its_block(group_of_three: None) -> None:
    def fail_in_a_block() -> None:
        with pb.independent_processes():
            with pb.independent_processes():
                pass
            CALLS["fit"]()
            raise KeyError

    with pytest.raises(KeyError):
        fail_in_a_block()
    with pytest.raises(RuntimeError, match=r"^fit: "):
        CALLS["fit"]()


PROGRAM = """
    import sys, torch, pyrobnn as pb
    model = pb.SupervisedModel(torch.nn.Linear(2, 1), pb.likelihoods.Normal(0.1), num_data=8)
    guide, loader = pb.guides.MeanField(model), [(torch.randn(8, 2), torch.randn(8, 1))]
    store = torch.distributed.FileStore(sys.argv[1], 2)
    torch.distributed.init_process_group("gloo", store=store, rank=1, world_size=2)
    try:
        pb.fit(model, guide, loader, epochs=1, progress=False)
    except RuntimeError as error:
        print(str(error)[:71])
    with pb.independent_processes():
        print(pb.fit(model, guide, loader, epochs=2, progress=False).epochs)
    torch.distributed.destroy_process_group()
"""


def test_two_processes(tmp_path: Path) -> None:
    """This one and another: both are refused; declared independent, they train for different lengths."""
    path = str(tmp_path / "store")
    command = [sys.executable, "-c", textwrap.dedent(PROGRAM), path]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        store = torch.distributed.FileStore(path, 2)
        wait = timedelta(seconds=120)
        torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=2, timeout=wait)
        try:
            with pytest.raises(RuntimeError, match=r"^fit: the process group of torch\.distributed has 2 processes, "):
                CALLS["fit"]()
            with pb.independent_processes():
                CALLS["fit"]()
        finally:
            torch.distributed.destroy_process_group()
        said = process.communicate()[0].splitlines()
    assert process.returncode == 0
    assert said == ["fit: the process group of torch.distributed has 2 processes, which it d", "2"]


WRAPPERS: dict[str, tuple[Callable[[nn.Module], nn.Module], str]] = {
    "DataParallel": (nn.DataParallel, r"a DataParallel; pass the network inside it \(its \.module\)"),
    "DistributedDataParallel": (DistributedDataParallel, r"a DistributedDataParallel; pass .* \(its \.module\)"),
    "FullyShardedDataParallel": (
        lambda net: FullyShardedDataParallel(net, device_id=torch.device("cpu")),
        r"sharded over processes \(a FullyShardedDataParallel\); pass the network as it was before",
    ),
    "fully_shard": (fully_shard, r"sharded over processes \(a FSDPLinear\); pass the network as it was before"),
}


@pytest.mark.filterwarnings("ignore:FSDP is switching to use `NO_SHARD`")
@pytest.mark.parametrize("name", WRAPPERS)
def test_wrapped_networks_are_refused_by_name(name: str, group_of_one: None) -> None:
    wrap, message = WRAPPERS[name]
    net = wrap(nn.Linear(2, 1))
    with pytest.raises(TypeError, match=f"^net: it is {message}"):
        built(net)
    with pytest.raises(TypeError, match=f"^net: the module '1' is {message}"):
        built(nn.Sequential(nn.ReLU(), net))
    with pytest.raises(TypeError, match=f"^net: it is {message}"):
        pb.finetune(net, LOADER, num_data=8)


@pytest.mark.parametrize("name", ["DataParallel", "DistributedDataParallel"])
def test_wrapped_models_and_guides_are_refused_by_name(name: str, group_of_one: None) -> None:
    wrap, message = WRAPPERS[name]
    guide = MeanField(PLAIN)
    with pytest.raises(TypeError, match=f"^guide: it is {message}"):
        pb.fit(PLAIN, wrap(guide), LOADER, **SHORT)  # type: ignore[arg-type]
    trained = built(nn.Linear(2, 1))
    trained.likelihood.scale = nn.Parameter(torch.ones(()))  # a wrapper asks for a parameter to train
    with pytest.raises(TypeError, match=f"^model: it is {message}"):
        pb.fit(wrap(trained), guide, LOADER, **SHORT)
    with pytest.raises(TypeError, match=f"^model: it is {message}"):
        pb.sample(wrap(trained), LOADER, kernel=SGLD(1e-5), num_samples=2)
