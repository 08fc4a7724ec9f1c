r"""ConfidNet: a network that learns how probable the predicted distribution makes the truth.

A head on the features of the trained network predicts the probability of the true class (TCP) under the posterior mean,

.. math::  \min_\theta \frac1n \sum_i \big(\sigma(h_\theta(\varphi(x_i))) - \bar p_{y_i}(x_i)\big)^2, \qquad
           \bar p(x) = \frac1K \sum_k p(\cdot \mid x, w_k),

so that it tends to :math:`E[\bar p_y \mid x] = \sum_c p(c \mid x)\, \bar p_c(x)`: low where the network is wrong for
sure, which its own largest probability cannot show. The features are what the last layer is given with the weights at
the guide's point (a mode, a mean, the weights before dropout, one member), with dropout off.

On its training data a network is right almost everywhere, and TCP almost 1: learn from a held-out fold, or from
augmented data. Corbière et al., "Addressing failure prediction by learning model confidence", NeurIPS 2019.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from numbers import Real
from typing import Any, Self, get_args

import torch
from torch import Tensor, nn

from pyrobnn.core import random_state
from pyrobnn.core.arguments import check_int, check_positive, check_positive_int, check_probability
from pyrobnn.core.batches import Reader
from pyrobnn.core.explanations import explained
from pyrobnn.core.fitted import Fitted
from pyrobnn.core.gradient_modes import gradients_enabled
from pyrobnn.core.pyro_compat import before_loading
from pyrobnn.core.trees import to_device
from pyrobnn.detection.confidence_training import Criterion, Epoch, Labels, Trainer, collected
from pyrobnn.detection.encoder import PointEncoder
from pyrobnn.guides.base import Guide
from pyrobnn.model.supervised import SupervisedModel
from pyrobnn.prediction.predict import input_blocks, predict_batches
from pyrobnn.prediction.predictor import PredictorFactory

__all__ = ["ConfidNet"]

_FEW_ERRORS = 20


@explained
class ConfidNet(Fitted):
    """Learned confidence in a trained posterior, or a point, which is left as it is.

    ::

        net = ConfidNet(model, guide).fit(held_out_loader, seed=0)
        confidence = net.confidence(test_loader)  # [N], the expected probability of the true class

    A state dict holds the copy of the network and the head; it is loaded into a ``ConfidNet`` of the same model.

    Args:
        model: The model, with a likelihood of classes.
        guide: The posterior: a guide, or draws ``{site: [K, *site shape]}``.
        hidden: Widths of the head's hidden layers.
        last_layer: Name of the layer whose inputs are the features; None finds the one that makes the outputs.
        num_samples: Number K of posterior draws.
        predictor: How the predictive is computed, as for :func:`pyrobnn.predict`.

    Attributes:
        history: Its epochs, the head's before those of the fine-tuning.
        best_epoch: The one that was taken, from 0 on: the best by the criterion, or by the squared error where no
            answer of the validation data is wrong.

    Raises:
        TypeError: If the model or the posterior is of another kind.
        ValueError: If there is no such layer, a number is out of range, or the posterior is another model's.
    """

    layer_index: Tensor

    def __init__(
        self,
        model: SupervisedModel,
        guide: Guide | Mapping[str, Tensor],
        *,
        hidden: Sequence[int] = (400, 400, 400, 400),
        last_layer: str | None = None,
        num_samples: int = 100,
        predictor: str | PredictorFactory | None = None,
    ) -> None:
        super().__init__("layer_index")
        if not isinstance(hidden, Sequence) or isinstance(hidden, str | bytes):
            raise TypeError(f"hidden: expected widths such as (400, 400), got {hidden!r}.")
        for width in hidden:
            check_positive_int("hidden", width)
        check_positive_int("num_samples", num_samples)
        self.encoder = PointEncoder(model, guide, last_layer)
        self.head = nn.Sequential()  # until the number of features is known
        self.hidden, self.num_samples, self.predictor = tuple(hidden), num_samples, predictor
        self.history: list[Epoch] = []
        self.best_epoch = 0
        self._posterior = (model, guide)  # in a tuple, so that they are no submodules
        before_loading(self, _prepare)

    @explained
    def fit(
        self,
        loader: Iterable[Any],
        *,
        batch: Reader | None = None,
        passes: int = 1,
        validation: float | Iterable[Any] = 0.1,
        criterion: Criterion = "ap_errors",
        epochs: int = 500,
        lr: float = 1e-4,
        batch_size: int = 128,
        finetune_epochs: int = 0,
        finetune_lr: float = 1e-6,
        seed: int | None = None,
        progress: bool = False,
    ) -> Self:
        """Trains the head, and then head and a copy of the encoder if that is asked for, by Adam.

        The posterior is run once over the data, whose features are kept.

        Args:
            loader: Batches ``(x, y)`` of data that the network was not trained with, or augmented ones.
            batch: How to read what the loaders yield, as for :func:`pyrobnn.fit`.
            passes: How often the loader is read: above 1 for one that augments its data anew each time.
            validation: Data that pick the epoch: a share of the loader's, with the same share of wrong answers, or a
                loader.
            criterion: ``"ap_errors"`` takes the epoch of the largest average precision of the errors, ``"mse"`` that of
                the least squared error, for a confidence that is to be near the probability itself.
            epochs: Epochs of the head.
            lr: Its learning rate.
            batch_size: Its batch size.
            finetune_epochs: Epochs of encoder and head together; the inputs are then kept as well.
            finetune_lr: Their learning rate.
            seed: Fixes draws, split, initial weights and order, and leaves the random state alone; None takes them from
                it.
            progress: Show progress bars.

        Returns:
            The fitted network.

        Raises:
            TypeError: If the likelihood is none of classes, or a batch is of another form.
            ValueError: If a number is out of range, there are too few data, or features do not fit labels.

        Warns:
            UserWarning: If fewer than 20 of the answers that it learns from are wrong.
        """
        _check_options(loader, passes, validation)
        for name, number in (("epochs", epochs), ("batch_size", batch_size)):
            check_positive_int(name, number)
        if criterion not in get_args(Criterion):
            raise ValueError(f"criterion: expected 'ap_errors' or 'mse', got {criterion!r}.")
        check_int("finetune_epochs", finetune_epochs, 0)
        check_positive("lr", lr)
        check_positive("finetune_lr", finetune_lr)
        self.encoder = PointEncoder(*self._posterior, self.encoder.last_layer)  # an earlier fit may have tuned it
        with gradients_enabled(), random_state.local(seed):
            draws, keep = random_state.fresh_seed(), finetune_epochs > 0

            def predicted(batches: Iterable[Any]) -> Iterator[Any]:
                return predict_batches(
                    *self._posterior, batches, self.num_samples, predictor=self.predictor, seed=draws
                )

            data = collected(loader, self.encoder, predicted, batch, argument="loader", passes=passes, keep=keep)
            if isinstance(validation, int | float):
                held_out, (chosen, held) = data, _split(data.wrong, float(validation))
            else:
                held_out = collected(validation, self.encoder, predicted, batch, argument="validation", keep=keep)
                chosen, held = (torch.arange(len(d.tcp), device=d.tcp.device) for d in (data, held_out))
            _warn_of_few_errors(data, chosen, held_out.wrong[held])
            self.head = self._new_head(data.features.shape[1]).to(data.features)
            options: dict[str, Any] = {"criterion": criterion, "progress": progress}
            trainer = Trainer(self.encoder, self.head, data, chosen, held_out, held, **options)
            trainer.train_head(epochs, lr, batch_size)
            if keep:
                trainer.train_all(finetune_epochs, finetune_lr)
            trainer.restore()
        self.history, self.best_epoch = trainer.history, trainer.best_epoch
        self.head.requires_grad_(False)
        index = self.encoder.layers.index(self.encoder.last_layer or "")
        self.store(len(chosen), layer_index=torch.tensor(index, device=data.tcp.device))
        return self

    @explained
    @torch.no_grad()
    def confidence(self, data: Any, *, batch: Reader | None = None) -> Tensor:
        """The learned confidence, an estimate of the probability of the true class.

        Args:
            data: Inputs or a loader, as for :func:`pyrobnn.predict`.
            batch: How to read what the loader yields, as for :func:`pyrobnn.predict`.

        Returns:
            ``[N, …]``, one for each label, from 0 to 1.

        Raises:
            RuntimeError: If it is not fitted.
            TypeError: If the inputs are of the wrong kind.
            ValueError: If there are none, or features do not fit labels.
        """
        self.check_fitted("fit", "loader")
        blocks, _ = input_blocks(data, batch)
        found = [self(to_device(x, self.encoder.device)) for x, _ in blocks]
        if not found:
            raise ValueError("data: it holds no inputs.")
        return torch.cat(found)

    def forward(self, x: Any) -> Tensor:
        """The confidence at one batch of inputs, ``[N, …]``.

        Raises:
            RuntimeError: If it is not fitted.
        """
        self.check_fitted("fit", "loader")
        features, shape = self.encoder(x)
        return self.head(features).sigmoid().reshape(shape)

    def extra_repr(self) -> str:
        """The layer whose inputs are the features, and the number of data."""
        return f"last_layer={self.encoder.last_layer!r}, num_data={int(self.num_data)}"

    def _new_head(self, width: int) -> nn.Sequential:
        layers: list[nn.Module] = []
        for fan_in, fan_out in itertools.pairwise([width, *self.hidden]):
            layers += [nn.Linear(fan_in, fan_out), nn.ReLU()]
        return nn.Sequential(*layers, nn.Linear([width, *self.hidden][-1], 1))


def _check_options(loader: Any, passes: Any, validation: Any) -> None:
    check_positive_int("passes", passes)
    for name, given in (("loader", loader), ("validation", validation)):
        if isinstance(given, Real) and name == "validation":
            check_probability("validation", given)
            if passes > 1:
                raise ValueError(
                    "validation: the loader is read several times, so that a share of it would be seen in training, "
                    "too; pass a loader of other data."
                )
        elif not isinstance(given, Iterable) or isinstance(given, str | bytes | Tensor | Mapping):
            also = " or a share" if name == "validation" else ""
            raise TypeError(f"{name}: expected a loader of batches (x, y){also}, got {type(given).__name__}.")
    if passes > 1 and isinstance(loader, Iterator):
        raise ValueError("passes: the loader is an iterator, which can be read once only; pass a DataLoader.")


def _split(wrong: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """Numbers of the data to learn from and of those held out, of right and wrong answers the same share."""
    chosen, held = [], []
    for answers in (wrong.nonzero().squeeze(1), (~wrong).nonzero().squeeze(1)):
        order = answers[torch.randperm(len(answers), device="cpu").to(answers.device)]
        count = min(max(round(share * len(order)), 1), len(order) - 1) if len(order) > 1 else 0
        held.append(order[:count])
        chosen.append(order[count:])
    if not len(held[0]) + len(held[1]):
        raise ValueError(f"loader: {len(wrong)} data are too few to hold out a share of {share:g}; take more.")
    return torch.cat(chosen), torch.cat(held)


def _warn_of_few_errors(data: Labels, chosen: Tensor, held: Tensor) -> None:
    count = int(data.wrong[chosen].sum())
    if count < _FEW_ERRORS:
        warnings.warn(
            f"ConfidNet: only {count} of the {len(chosen)} answers it learns from are wrong, which shows little of "
            "what errors look like; learn from a held-out fold instead of training data, or from a loader that "
            "augments them, read in several passes.",
            stacklevel=4,
        )
    elif not bool(held.any()):
        warnings.warn(
            "ConfidNet: no answer of the validation data is wrong, so that the squared error picks the epoch; hold out "
            "more.",
            stacklevel=4,
        )


def _prepare(module: ConfidNet, state_dict: Mapping[str, Any], prefix: str, *_: Any) -> None:
    """Makes the head, and finds the layer, of the state dict of a fitted one."""
    first = state_dict.get(f"{prefix}head.0.weight")
    if isinstance(first, Tensor):
        weight = next(iter(module.encoder.net.parameters()), first)
        module.head = module._new_head(first.shape[1]).to(weight.device, first.dtype).requires_grad_(False)
    index = state_dict.get(f"{prefix}layer_index")
    if isinstance(index, Tensor) and index.numel() == 1 and 0 <= int(index) < len(module.encoder.layers):
        module.encoder.last_layer = module.encoder.layers[int(index)]
