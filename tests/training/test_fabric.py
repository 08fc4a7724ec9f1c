"""Lightning Fabric gives a run its processes, device and precision; what it cannot give is refused."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("lightning.fabric", reason="needs lightning, of the extra lightning")

import lightning.fabric
from lightning.fabric.strategies import FSDPStrategy

import pyrobnn as pb
from pyrobnn.guides import MeanField
from tests.training.processes import Failed, on_ranks
from tests.training.test_data_parallel import N, X, Y, built, loader, rank, state


def fabric(devices: int = 1, **options: Any) -> Any:
    return lightning.fabric.Fabric(accelerator="cpu", devices=devices, **options)


def trained(given: Any, draws: Any = "same_draws") -> dict[str, Tensor]:
    model = built(seed=rank())
    guide = MeanField(model)
    options: dict[str, Any] = {"epochs": 2, "seed": 3, "progress": False, "lr": 0.01}
    pb.fit(model, guide, loader(), fabric=given, data_parallel=draws, **options)
    return state(guide)


def test_two_processes_of_fabric_train_as_one_process_without(tmp_path: Path) -> None:
    first, second = on_ranks(_of_two, tmp_path)
    assert not isinstance(first, Failed), first
    expected = trained(None)
    for name, value in expected.items():
        assert torch.equal(first[name], second[name])
        torch.testing.assert_close(first[name], value, rtol=2e-6, atol=2e-6)


def _of_two() -> dict[str, Tensor]:
    number = str(torch.distributed.get_rank())
    os.environ |= {"RANK": number, "LOCAL_RANK": number, "WORLD_SIZE": "2", "GROUP_RANK": "0", "LOCAL_WORLD_SIZE": "2"}
    os.environ |= {"TORCHELASTIC_RUN_ID": "a", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29501"}
    given = fabric(2, strategy="ddp")
    given.launch()
    return trained(given)


def test_precision_is_that_of_fabric() -> None:
    """Under bfloat16 products have 8 bits, under 32-true they are those of a run without Fabric."""
    exact, rounded = trained(fabric()), trained(fabric(precision="bf16-mixed"))
    expected = trained(None)
    assert torch.equal(exact["0.loc"], expected["0.loc"])
    assert rounded["0.loc"].dtype == torch.float32
    assert 1e-7 < float((rounded["0.loc"] - expected["0.loc"]).abs().max()) < 0.05


def test_draws_are_its_own_by_default() -> None:
    assert torch.equal(trained(fabric(), None)["0.loc"], trained(None, "own_draws")["0.loc"])


class Elsewhere(lightning.fabric.Fabric):
    @property
    def device(self) -> torch.device:
        return torch.device("cuda", 0)


class Several(lightning.fabric.Fabric):
    @property
    def world_size(self) -> int:
        return 2


def test_bad_input() -> None:
    with pytest.raises(ValueError, match=r"fabric: it computes on 'cuda:0', but the model is on 'cpu'; call model\.to"):
        trained(Elsewhere(accelerator="cpu", devices=1))
    with pytest.raises(RuntimeError, match=r"fabric: it has not started its processes; call fabric\.launch\(\) first"):
        trained(Several(accelerator="cpu", devices=1))
    with pytest.raises(TypeError, match=r"fabric: expected a lightning\.fabric\.Fabric, got 3"):
        trained(3)
    given = fabric()
    given._strategy = FSDPStrategy()
    with pytest.raises(TypeError, match="fabric: its FSDPStrategy shards parameters"):
        trained(given)
    model = built()
    with pytest.raises(ValueError, match=r"device: 'meta' was given, but fabric computes on 'cpu'; leave device= out"):
        pb.fit(model, MeanField(model), loader(), epochs=1, device="meta", fabric=fabric())


def test_what_fabric_set_up_is_refused() -> None:
    net = fabric().setup(nn.Linear(3, 1))
    with pytest.raises(TypeError, match=r"net: it is set up by Fabric; pass it as it was before fabric\.setup\(\)"):
        pb.SupervisedModel(net, pb.likelihoods.Normal(0.1), num_data=N)
    assert X.shape[0] == Y.shape[0] == N
