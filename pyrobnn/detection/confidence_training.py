"""Training of a head that predicts the probability of the true class from features."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from pyrobnn.core.batches import Batch, Reader
from pyrobnn.core.progress import progress_bar
from pyrobnn.detection.encoder import PointEncoder
from pyrobnn.metrics.detection import aupr
from pyrobnn.model.likelihoods.predictions import Prediction
from pyrobnn.prediction.held_out import held_out_classes

__all__ = ["Block", "Criterion", "Epoch", "Labels", "Trainer", "collected"]

Criterion = Literal["ap_errors", "mse"]


@dataclass(frozen=True)
class Epoch:
    """One epoch of training.

    Attributes:
        mse: Mean squared error on the data learned from, during the epoch.
        validation_mse: That on the validation data, after it.
        validation_ap_errors: Average precision of the errors there; None if all answers are right, or all wrong.
    """

    mse: float
    validation_mse: float
    validation_ap_errors: float | None


@dataclass
class Block:
    """A batch that is encoded anew while the encoder is trained.

    Attributes:
        inputs: Its inputs.
        observed: Which of its labels were observed, flat.
        rows: Where these are among all labels.
    """

    inputs: Any
    observed: Tensor
    rows: slice


@dataclass
class Labels:
    """The n observed labels of some data.

    Attributes:
        features: What the last layer is given, ``[n, F]``.
        tcp: Mean probability of the true class ``[n]``.
        wrong: Whether the answer is wrong ``[n]``.
        weight: A weight of each ``[n]``.
        blocks: The batches, if they are kept.
    """

    features: Tensor
    tcp: Tensor
    wrong: Tensor
    weight: Tensor
    blocks: list[Block] = field(default_factory=list)

    def encode(self, encoder: PointEncoder) -> None:
        """Computes the features anew."""
        with torch.no_grad():
            parts = [encoder(block.inputs)[0][block.observed] for block in self.blocks]
        self.features = torch.cat(parts)


def collected(
    loader: Iterable[Any],
    encoder: PointEncoder,
    predicted: Callable[[Iterable[Batch]], Iterator[tuple[Prediction, Any]]],
    reader: Reader | None,
    *,
    argument: str,
    passes: int = 1,
    keep: bool = False,
) -> Labels:
    """Features, and the predictions of the true class, of all data of a loader.

    Args:
        loader: The data.
        encoder: From inputs to features.
        predicted: From batches to predictions.
        reader: How to read what the loader yields.
        argument: What errors name.
        passes: How often the loader is read.
        keep: Whether to keep the batches.

    Raises:
        ValueError: If there are no data.
    """
    last: list[Batch] = []
    found: list[tuple[Tensor, ...]] = []
    blocks: list[Block] = []
    start = 0

    def batches() -> Iterator[Batch]:
        for _ in range(passes):
            for raw in loader:
                last[:] = [Batch.read(raw, encoder.device, reader, argument=argument)]
                yield last[0]

    for prediction, _ in predicted(batches()):
        batch = last[0]
        classes, labels, mask = held_out_classes(prediction, batch.targets)
        with torch.no_grad():
            features, shape = encoder(batch.inputs)
        observed = mask.flatten()
        weight = torch.ones(shape[0], device=features.device) if batch.weight is None else batch.weight
        weight = weight.reshape(-1, *[1] * (len(shape) - 1)).expand(shape).flatten()
        tcp = classes.mean[mask].gather(-1, labels.unsqueeze(-1)).squeeze(-1)
        wrong = classes.predicted[mask] != labels
        found.append((features[observed], tcp.to(features), wrong, weight[observed].to(features)))
        if keep:
            blocks.append(Block(batch.inputs, observed, slice(start, start + len(labels))))
        start += len(labels)
    if not found:
        raise ValueError(f"{argument}: it yielded no batch.")
    features, tcp, wrong, weight = (torch.cat(column) for column in zip(*found, strict=True))
    return Labels(features, tcp, wrong, weight, blocks)


class Trainer:
    """Minimizes the squared error, and remembers the best epoch.

    Args:
        encoder: From inputs to features.
        head: From features to the logit of the confidence.
        data: What is learned from.
        chosen: Numbers of the labels that are.
        validation: What picks the epoch.
        held: Numbers of the labels that do.
        criterion: Whether the average precision of the errors or the squared error does.
        progress: Show progress bars.

    Attributes:
        history: All epochs.
        best_epoch: The one whose weights the networks have at the end, from 0 on.
    """

    def __init__(
        self,
        encoder: PointEncoder,
        head: nn.Module,
        data: Labels,
        chosen: Tensor,
        validation: Labels,
        held: Tensor,
        *,
        criterion: Criterion,
        progress: bool,
    ) -> None:
        self.encoder, self.head, self.criterion, self.progress = encoder, head, criterion, progress
        self.data, self.chosen, self.validation, self.held = data, chosen, validation, held
        self.history: list[Epoch] = []
        self.best_epoch, self._best = 0, -torch.inf
        self._states: list[dict[str, Tensor]] = []

    def train_head(self, epochs: int, lr: float, batch_size: int) -> None:
        """Trains the head on the features as they are, by Adam."""
        optimizer = torch.optim.Adam(self.head.parameters(), lr)
        data, chosen = self.data, self.chosen
        for _ in progress_bar(range(epochs), shown=self.progress, title="head", unit="epoch"):
            total = torch.zeros((), device=data.tcp.device)
            for rows in chosen[torch.randperm(len(chosen), device="cpu").to(chosen.device)].split(batch_size):
                total += len(rows) * self._step(optimizer, data.features[rows], rows)
            self._finish_epoch(float(total) / len(chosen))

    def train_all(self, epochs: int, lr: float) -> None:
        """Trains encoder and head from the best epoch so far, by Adam, one batch of the loader a step."""
        self.restore()
        optimizer = torch.optim.Adam([*self.head.parameters(), *self.encoder.parameters_to_train()], lr)
        is_chosen = torch.zeros(len(self.data.tcp), dtype=torch.bool, device=self.chosen.device)
        is_chosen[self.chosen] = True
        for _ in progress_bar(range(epochs), shown=self.progress, title="encoder and head", unit="epoch"):
            total = torch.zeros((), device=is_chosen.device)
            for index in torch.randperm(len(self.data.blocks), device="cpu").tolist():
                block = self.data.blocks[index]
                used = is_chosen[block.rows].nonzero().squeeze(1)
                if len(used):
                    features = self.encoder(block.inputs)[0][block.observed][used]
                    total += len(used) * self._step(optimizer, features, block.rows.start + used)
            self.validation.encode(self.encoder)
            self._finish_epoch(float(total) / len(self.chosen))
        self.encoder.requires_grad_(False)

    def restore(self) -> None:
        """Goes back to the best epoch."""
        for module, state in zip((self.encoder, self.head), self._states, strict=True):
            module.load_state_dict(state)

    def _step(self, optimizer: torch.optim.Optimizer, features: Tensor, rows: Tensor) -> Tensor:
        weight = self.data.weight[rows]
        optimizer.zero_grad()
        square = (self.head(features).squeeze(-1).sigmoid() - self.data.tcp[rows]).square()
        loss = (weight * square).sum() / weight.sum().clamp_min(torch.finfo(weight.dtype).tiny)
        loss.backward()
        optimizer.step()
        return loss.detach()

    def _finish_epoch(self, mse: float) -> None:
        data, held = self.validation, self.held
        with torch.no_grad():
            confidence = self.head(data.features[held]).squeeze(-1).sigmoid()
        error, wrong = float((confidence - data.tcp[held]).square().mean()), data.wrong[held]
        both = bool(wrong.any()) and not bool(wrong.all())
        precision = aupr(-confidence[~wrong], -confidence[wrong]) if both else None
        self.history.append(Epoch(mse, error, precision))
        score = -error if precision is None or self.criterion == "mse" else precision
        if score > self._best:
            self.best_epoch, self._best = len(self.history) - 1, score
            modules = (self.encoder, self.head)
            self._states = [{name: v.detach().clone() for name, v in m.state_dict().items()} for m in modules]
