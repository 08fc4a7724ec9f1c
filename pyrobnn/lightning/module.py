r"""A model and its guide as one ``LightningModule``: the Trainer owns loop, devices, precision and logs.

The loss of a training step is the objective per datum, :math:`-\frac1N \mathrm{ELBO}`, as one graph of ordinary
operations, so that DDP, accumulation, clipping and precision plugins of the Trainer see an ordinary loss.
:func:`pyrobnn.fit` takes the fast steps of a guide instead, and knows uneven batches; prefer it where it is enough.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from pyro.optim import PyroOptim
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from pyrobnn.core.arguments import check_positive_int
from pyrobnn.core.batches import Batch, Reader
from pyrobnn.core.extras import import_extra
from pyrobnn.guides.base import Guide, check_guide
from pyrobnn.model.declarations import declared_num_data
from pyrobnn.model.likelihoods.learned import initialize_likelihood
from pyrobnn.objectives import ELBO, Objective
from pyrobnn.prediction import Prediction, predict
from pyrobnn.training.checks import check_loader, check_targets
from pyrobnn.training.optimizers import OptimizerSpec, make_optimizer
from pyrobnn.training.schedule import LearningRates, SchedulerPer, check_scheduler_per
from pyrobnn.training.validation import log_predictive_sum

__all__ = ["BayesianModule"]

_LIGHTNING: Any = import_extra("pyrobnn.lightning", "lightning", "lightning")


class BayesianModule(_LIGHTNING.LightningModule):
    """Trains a guide with ``lightning.Trainer``.

    Logged: ``elbo``, ``log_likelihood``, ``kl``, ``loss`` and further terms of the objective, in nats per datum;
    ``val_log_predictive``, the log predictive density of validation data, by which to stop early. ``Trainer.predict``
    gives a :class:`~pyrobnn.Prediction` for each batch.

    Under DDP every process draws weights of its own, since the Trainer's ``seed_everything(workers=True)`` or the lack
    of a seed makes their random states differ; gradients are averaged, which is exact for batches of equal size.

    Example:
        >>> module = BayesianModule(model, MeanField(model), lr=1e-2)
        >>> Trainer(max_epochs=20, precision="bf16-mixed").fit(module, loader, validation)
        >>> pb.predict(module.model, module.guide, x)

    Args:
        model: The Pyro model; it declares ``num_data``, that of the whole training set however many processes share it.
        guide: Its guide.
        elbo: The objective; ``ELBO()`` if None.
        lr: Learning rate.
        scale_lr: Learning rate of the guide's scale parameters; ``lr`` if None.
        optimizer: As for :func:`pyrobnn.fit`; no optimizer of Pyro.
        scheduler: A function from the optimizer to a learning-rate schedule. A ``ReduceLROnPlateau`` (in either mode)
            watches ``val_log_predictive``.
        scheduler_per: Whether it advances after each ``"step"`` or each ``"epoch"``; None as for :func:`pyrobnn.fit`.
        batch: How to read what loaders yield, as for :func:`pyrobnn.fit`.
        num_samples: Draws K for validation and prediction.

    Attributes:
        model: The model.
        guide: The guide.

    Raises:
        TypeError: If an argument is of the wrong kind.
        ValueError: If the guide is another model's, or the model declares no ``num_data``.
    """

    def __init__(
        self,
        model: nn.Module,
        guide: Guide,
        *,
        elbo: Objective | None = None,
        lr: float = 1e-3,
        scale_lr: float | None = None,
        optimizer: OptimizerSpec = None,
        scheduler: Callable[[Optimizer], LRScheduler] | None = None,
        scheduler_per: SchedulerPer = None,
        batch: Reader | None = None,
        num_samples: int = 16,
    ) -> None:
        super().__init__()
        check_guide(model, guide)
        check_positive_int("num_samples", num_samples)
        check_scheduler_per(scheduler, scheduler_per)
        if elbo is not None and not isinstance(elbo, Objective):
            raise TypeError(f"elbo: expected an objective, such as pyrobnn.objectives.ELBO(), got {elbo!r}.")
        if isinstance(optimizer, PyroOptim):
            raise TypeError("optimizer: a Trainer needs an optimizer of torch, got one of pyro.optim.")
        if declared_num_data(model) is None:
            raise ValueError(f"model: {type(model).__name__} does not declare num_data; set it to the number of data.")
        self.model, self.guide, self.elbo = model, guide, elbo or ELBO()
        self._lr, self._scale_lr = lr, scale_lr
        self._optimizer, self._scheduler, self._per = optimizer, scheduler, scheduler_per
        self._reader, self._num_samples = batch, num_samples

    def configure_optimizers(self) -> Any:
        """The optimizer over the parameters of guide and model, with its schedule."""
        # A fused Adam, which fit takes, unscales gradients itself, so that the Trainer refuses to clip them.
        optimizer = torch.optim.Adam if self._optimizer is None else self._optimizer
        made = make_optimizer(self.model, self.guide, optimizer, self._lr, self._scale_lr)
        rates = LearningRates(self._scheduler, made, self._per)
        if rates.scheduler is None:
            return made
        schedule = {"scheduler": rates.scheduler, "interval": "step" if rates.per_step else "epoch"}
        return {"optimizer": made, "lr_scheduler": schedule | {"monitor": "val_log_predictive"}}

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        """Advances the schedule; one that expects a loss is given minus the log predictive density."""
        if isinstance(scheduler, ReduceLROnPlateau) and metric is not None and scheduler.mode == "min":
            metric = -metric
        super().lr_scheduler_step(scheduler, metric)

    def on_train_start(self) -> None:
        """Compares the data with N.

        Raises:
            ValueError: If the training data are not ``num_data`` rows.
        """
        check_loader(self.model, self.trainer.train_dataloader, None, self._reader, "train_dataloaders")

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Checks the first batch, and starts what the likelihood learns at its scale, in all processes alike."""
        if self.trainer.global_step or batch_idx:
            return
        read = Batch.read(batch, None, self._reader)
        read.check(batch_idx)
        check_targets(self.model, read)
        initialize_likelihood(self.model, read.targets)
        if self.trainer.world_size > 1:
            self.model.load_state_dict(self.trainer.strategy.broadcast(self.model.state_dict()))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """The objective per datum, of one batch.

        Returns:
            The loss, a scalar, in nats per datum.
        """
        read = Batch.read(batch, None, self._reader)
        self.elbo.num_steps = self.trainer.global_step
        loss = self.elbo.differentiable_loss(self.model, self.guide, *read.args, **read.kwargs)
        parts = self.elbo.parts
        assert parts is not None, "a guide of this library has parts"
        self.log_dict(parts.per_datum(), batch_size=read.rows, on_step=False, on_epoch=True)
        return loss / parts.num_data

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """The log predictive density of one batch, under the same draws in every batch of an epoch."""
        total, rows = log_predictive_sum(self.model, self.guide, [batch], None, self._num_samples, self._reader)
        self.log("val_log_predictive", total / rows, batch_size=rows, sync_dist=True, prog_bar=True)

    def predict_step(self, batch: Any, batch_idx: int) -> Prediction:
        """The prediction of one batch of inputs, or of pairs ``(inputs, targets)``, whose targets are not used."""
        inputs = batch[0] if type(batch) in (tuple, list) else batch
        return predict(self.model, self.guide, inputs, self._num_samples)
