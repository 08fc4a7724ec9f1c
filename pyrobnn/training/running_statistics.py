r"""BatchNorm statistics under the posterior.

Running statistics collected in training belong to the draws of that time, and an average over draws is not
the statistics of any of them. :func:`recalibrate_batch_norm` estimates them afresh, as the plain average over
batches and posterior draws, each batch under a new draw (as SWA re-estimates them for its averaged weights,
Izmailov et al. 2018). The members of an ensemble have statistics of their own, each taken under its own weights.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from pyrobnn.core.arguments import check_positive_int
from pyrobnn.core.batches import Reader, inputs_of
from pyrobnn.core.explanations import explained
from pyrobnn.core.finite import check_inputs
from pyrobnn.core.processes import refuse_process_group
from pyrobnn.guides.base import Guide, check_guide
from pyrobnn.model.draws import Draws
from pyrobnn.model.supervised import SupervisedModel
from pyrobnn.prediction.runners import inputs_on, model_outputs
from pyrobnn.prediction.second_entries import check_second_entry

__all__ = ["BATCH_NORMS", "recalibrate_batch_norm"]

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
"""Layers that normalize by the statistics of a batch."""


@explained
@torch.no_grad()
def recalibrate_batch_norm(
    model: nn.Module, guide: Guide, loader: Iterable[Any], *, batch: Reader | None = None, num_samples: int = 1
) -> None:
    """Re-estimates the running statistics of every BatchNorm layer, in place.

    Args:
        model: The model; only its BatchNorm buffers change.
        guide: The posterior to draw weights from. Of an ensemble, whose members have buffers of their own, these
            change: the loader's batches are run once per member.
        loader: Yields inputs or pairs ``(x, y)``; each batch should be as large as in training.
        batch: For loaders that yield something else, as for :func:`pyrobnn.fit`: a function from that to
            ``(inputs, targets)``, with None for targets that are unknown, or a :class:`~pyrobnn.Batch`.
        num_samples: Posterior draws per batch.

    Raises:
        TypeError: If the guide is not of this library.
        ValueError: If the guide is another model's, the model has no BatchNorm layer with running statistics, the
            loader is empty, or an input is NaN or infinite. After any error the statistics are restored.
        RuntimeError: In a process group of several processes (:func:`~pyrobnn.independent_processes`).
    """
    refuse_process_group("recalibrate_batch_norm")
    check_guide(model, guide)
    layers: list[Any] = [m for m in model.modules() if isinstance(m, BATCH_NORMS) and m.track_running_stats]
    if not layers:
        raise ValueError("model: it has no BatchNorm layer with running statistics, so nothing can be recalibrated.")
    check_positive_int("num_samples", num_samples)
    device = next(model.parameters()).device
    modes = [(module, module.training) for module in model.modules()]
    momenta = [layer.momentum for layer in layers]
    averages = _Averages(model, layers, guide)
    passes = 0
    try:
        model.eval()
        for layer in layers:
            layer.momentum = None  # the plain average over all passes
            layer.train()
        for index, raw in enumerate(loader):
            x, y = inputs_of(raw, "loader", batch)
            x = inputs_on(x, device)
            check_inputs(x, index)
            for _ in range(num_samples):
                outputs = averages.add(x)
            if index == 0 and isinstance(model, SupervisedModel):
                check_second_entry(model, x, y, model.likelihood.target_shape(outputs), model.likelihood, "loader")
            passes += num_samples
        if passes == 0:
            raise ValueError("loader: it yielded no batch to take statistics of.")
    finally:
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum
        for module, training in modes:
            module.training = training
    averages.keep()


class _Averages:
    """New running statistics of the model, or of each component of a mixture; :meth:`keep` stores them at the end."""

    def __init__(self, model: nn.Module, layers: list[Any], guide: Guide) -> None:
        self.model, self.guide = model, guide
        owners = {id(layer) for layer in layers}
        self._names = [
            f"{prefix}.{local}" if prefix else local
            for prefix, module in model.named_modules()
            if id(module) in owners
            for local, _ in module.named_buffers(recurse=False)
        ]
        example = guide.sample(1)
        own = [name for name in self._names if name in example.buffers]
        points = (guide.facts.num_components or guide.facts.num_points) if own else 1
        assert points is not None, "components with buffers of their own are finitely many"
        self._members, self._of_components = torch.arange(points), bool(own)
        stored = [dict(model.named_buffers()) for _ in self._members]
        if own:
            stored = [all_buffers | draw for all_buffers, draw in zip(stored, self._stored_by_component(), strict=True)]
        self._before = [{name: one[name].clone() for name in self._names} for one in stored]
        self._fresh = [{name: _reset(name, value) for name, value in one.items()} for one in self._before]

    def _stored_by_component(self) -> list[dict[str, Tensor]]:
        draws = self.guide.atoms(self._members)
        return [draws.at(index).buffers for index in range(len(self._members))]

    def add(self, x: Any) -> Tensor:
        """Runs a batch once for each component, under new draws; returns the outputs of the last."""
        draws = self.guide.atoms(self._members) if self._of_components else self.guide.sample(1)
        for index, fresh in enumerate(self._fresh):
            draw = draws.at(index)
            fresh_draw = Draws(draw, {**draw.buffers, **fresh}, contexts=draw.contexts, live=True)
            with fresh_draw.running(self.model, update=True):
                outputs = model_outputs(self.model, x)
        return outputs

    def keep(self) -> None:
        """Stores the statistics in the guide if its components have buffers, else in the model."""
        for index, (fresh, before) in enumerate(zip(self._fresh, self._before, strict=True)):
            for name, value in fresh.items():
                if name.endswith("num_batches_tracked"):
                    value.copy_(torch.maximum(value, before[name]))
            if self._of_components:
                self.guide.write_buffers(torch.tensor(index), fresh)
            else:
                buffers = dict(self.model.named_buffers())
                for name, value in fresh.items():
                    buffers[name].copy_(value)


def _reset(name: str, value: Tensor) -> Tensor:
    """The initial value of a running statistic, as a new tensor."""
    return torch.ones_like(value) if name.endswith("running_var") else torch.zeros_like(value)
