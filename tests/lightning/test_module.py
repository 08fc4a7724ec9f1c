"""A model and its guide under ``lightning.Trainer``: the loss is that of fit, and so is what it learns."""

from __future__ import annotations

import logging
from functools import partial
from pathlib import Path
from typing import Any

import pyro.distributions as dist
import pyro.optim
import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import ReduceLROnPlateau, StepLR
from torch.utils.data import DataLoader, TensorDataset

pytest.importorskip("lightning", reason="needs lightning, of the extra lightning")

from lightning import Trainer

import pyrobnn as pb
from pyrobnn.guides import MAP, MeanField
from pyrobnn.lightning import BayesianModule
from pyrobnn.objectives import ELBO

logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:The number of training batches"),
    pytest.mark.filterwarnings("ignore:You defined a `validation_step`"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec"),
    pytest.mark.filterwarnings("ignore:`isinstance.treespec"),
]

_NOISE = torch.Generator().manual_seed(0)
X = torch.randn(40, 3, generator=_NOISE)
Y = X @ torch.randn(3, 1, generator=_NOISE) + 0.3 * torch.randn(40, 1, generator=_NOISE)
LOADER = DataLoader(TensorDataset(X, Y), 10)
HELD_OUT = DataLoader(TensorDataset(X, Y), 25)


def built(learned: bool = False, num_data: int = 40) -> pb.SupervisedModel:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1))
    likelihood = pb.likelihoods.Normal() if learned else pb.likelihoods.Normal(0.3)
    return pb.SupervisedModel(net, likelihood, dist.Normal(0.0, 1.0), num_data=num_data)


def trainer(path: Path, **options: Any) -> Trainer:
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "accelerator": "cpu"}
    return Trainer(**(quiet | {"enable_model_summary": False, "default_root_dir": path, "max_epochs": 4} | options))


def test_points_are_trained_as_by_fit(tmp_path: Path) -> None:
    """No randomness: SGD goes the same way, and reports the same numbers."""
    model, other = built(learned=True), built(learned=True)
    guide, expected = MAP(model), MAP(other)
    module = BayesianModule(model, guide, lr=0.02, optimizer=torch.optim.SGD)
    used = trainer(tmp_path)
    used.fit(module, LOADER, HELD_OUT)
    options: dict[str, Any] = {"lr": 0.02, "optimizer": torch.optim.SGD, "epochs": 4, "progress": False}
    history = pb.fit(other, expected, LOADER, validation=HELD_OUT, **options)
    torch.testing.assert_close(guide.flat_loc, expected.flat_loc, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(dict(model.state_dict()), dict(other.state_dict()), rtol=1e-5, atol=1e-6)
    found = {name: float(value) for name, value in used.callback_metrics.items()}
    assert found["elbo"] == pytest.approx(history.elbo[-1], rel=1e-4)
    assert found["val_log_predictive"] == pytest.approx(history.validation[-1], rel=1e-4)


@pytest.mark.parametrize("options", [{}, {"precision": "bf16-mixed"}, {"accumulate_grad_batches": 2}], ids=str)
def test_mean_field_learns(options: dict[str, Any], tmp_path: Path) -> None:
    model = built()
    guide = MeanField(model)
    before = pb.predict(model, guide, X, 64, seed=0).log_prob(Y).mean()
    module = BayesianModule(model, guide, lr=0.05)
    trainer(tmp_path, max_epochs=30, gradient_clip_val=5.0, **options).fit(module, LOADER)
    after = pb.predict(model, guide, X, 64, seed=0).log_prob(Y).mean()
    assert float(after) > float(before) + 1.0


def test_predictions_and_checkpoints(tmp_path: Path) -> None:
    module = BayesianModule(built(), MeanField(built()), num_samples=5)
    used = trainer(tmp_path, max_epochs=1)
    used.fit(module, LOADER)
    predictions = used.predict(module, LOADER)
    assert predictions is not None
    assert [tuple(p.mean.shape) for p in predictions] == [(10, 1)] * 4  # type: ignore[union-attr]
    used.save_checkpoint(tmp_path / "last.ckpt")
    options = {"model": built(), "guide": MeanField(built()), "weights_only": True}
    loaded = BayesianModule.load_from_checkpoint(tmp_path / "last.ckpt", **options)
    torch.testing.assert_close(loaded.guide.flat_loc, module.guide.flat_loc, rtol=0.0, atol=0.0)


def test_schedules_of_rates_and_weights_advance_with_steps(tmp_path: Path) -> None:
    elbo = ELBO(temperature=lambda step: 0.1 * (1 + step))
    model = built()
    half = partial(StepLR, step_size=1, gamma=0.5)
    module = BayesianModule(model, MAP(model), elbo=elbo, lr=0.4, scheduler=half, scheduler_per="epoch")
    used = trainer(tmp_path, max_epochs=2)
    used.fit(module, LOADER)
    assert used.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.1)
    assert elbo.parts is not None
    assert elbo.parts.temperature == pytest.approx(0.8)


@pytest.mark.parametrize("mode", ["min", "max"])
def test_a_plateau_is_one_of_the_density_in_either_mode(mode: str, tmp_path: Path) -> None:
    """While it rises the rate stays; where it has fallen the rate is halved: as by fit."""
    plateau = partial(ReduceLROnPlateau, mode=mode, factor=0.5, patience=0)
    found = []
    for lr in (0.01, 0.2):
        model, other = built(), built()
        module = BayesianModule(model, MAP(model), lr=lr, optimizer=torch.optim.SGD, scheduler=plateau)
        used = trainer(tmp_path)
        used.fit(module, LOADER, HELD_OUT)
        options: dict[str, Any] = {"lr": lr, "optimizer": torch.optim.SGD, "epochs": 5, "progress": False}
        history = pb.fit(other, MAP(other), LOADER, validation=HELD_OUT, scheduler=plateau, **options)
        found.append(used.optimizers[0].param_groups[0]["lr"] / lr)
        assert found[-1] == pytest.approx(history.learning_rate[4] / lr)
    assert found[0] == 1.0
    assert found[1] < 1.0


def test_bad_input(tmp_path: Path) -> None:
    model = built()
    with pytest.raises(TypeError, match="optimizer: a Trainer needs an optimizer of torch"):
        BayesianModule(model, MAP(model), optimizer=pyro.optim.Adam({"lr": 0.1}))
    with pytest.raises(TypeError, match=r"guide: expected one of pyrobnn\.guides, got Linear"):
        BayesianModule(model, nn.Linear(1, 1))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="elbo: expected an objective"):
        BayesianModule(model, MAP(model), elbo=3)  # type: ignore[arg-type]
    wrong = BayesianModule(built(num_data=7), MAP(model))
    with pytest.raises(ValueError, match="num_data: the model was built for 7 data, but the train_dataloaders"):
        trainer(tmp_path).fit(wrong, LOADER)
