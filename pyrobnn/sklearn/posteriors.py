"""Posteriors of estimators by name, and how each is fitted.

Most are fitted by gradient steps. A Laplace approximation and SWAG are trained as a point first, stopped early where
rows are held out, and need something more then: the curvature, or a trajectory of SGD around it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.optim.lr_scheduler import CosineAnnealingLR

from pyrobnn import guides
from pyrobnn.guides import Guide
from pyrobnn.guides.base import check_guide
from pyrobnn.model.initialization import Init
from pyrobnn.model.supervised import SupervisedModel
from pyrobnn.sklearn.rows import ShuffledBatches
from pyrobnn.training import History, fit
from pyrobnn.training.length import default_epochs

__all__ = ["POSTERIORS", "PosteriorSpec", "Training", "fit_posterior"]

PosteriorSpec: TypeAlias = str | Callable[..., Guide]
"""A name in :data:`POSTERIORS`, or a function of the model, such as a class of :mod:`pyrobnn.guides`."""

_ENSEMBLE = partial(guides.DeltaMixture, num_members=10)

POSTERIORS: Mapping[str, Callable[..., Guide]] = {
    "map": guides.MAP,
    "mean_field": guides.MeanField,
    "low_rank_normal": guides.LowRankNormal,
    "ensemble": _ENSEMBLE,
    "delta_mixture": _ENSEMBLE,
    "low_rank_ensemble": guides.LowRankEnsemble,
    "mc_dropout": guides.MCDropout,
    "laplace": partial(guides.Laplace, structure="kronecker"),
    "last_layer_laplace": guides.Laplace,
    "swag": guides.SWAG,
}
"""Families by name; ``"ensemble"`` and ``"delta_mixture"`` are one, of ten members."""

_LR = 1e-2
# Elements of a low-rank factor are of the size of standard deviations.
_SMALLER_LRS: Mapping[type, float] = {guides.LowRankNormal: 1e-3}
_SWAG_EPOCHS, _SWAG_LR = 20, 1e-3


@dataclass
class Training:
    """Data and options of one fit.

    Attributes:
        model: The model.
        batches: What is trained on.
        validation: The rows held out, ``[(x, y)]``, or None.
        init: Where guides that are known by name start.
        epochs: Passes over the data; None for the default of :func:`pyrobnn.fit`.
        lr: Learning rate at the start, which falls along a cosine; None for 1e-2, of a low-rank normal 1e-3.
        patience: Epochs without a better validation value after which training stops; None for the default.
        seed: Of the training.
        options: Further options of :func:`pyrobnn.fit`.
    """

    model: SupervisedModel
    batches: ShuffledBatches
    validation: list[tuple[Tensor, Tensor]] | None
    init: Init
    epochs: int | None
    lr: float | None
    patience: int | None
    seed: int
    options: dict[str, Any] = field(default_factory=dict)

    def fit(self, guide: Guide) -> History:
        """Gradient steps, and back to the best epoch if rows are held out."""
        epochs = default_epochs(self.batches) if self.epochs is None else self.epochs
        held: dict[str, Any] = {}
        if self.validation is not None:
            held = {"validation": self.validation, "early_stopping": True, "patience": self.patience}
        return fit(
            self.model,
            guide,
            self.batches,
            epochs=epochs,
            lr=_SMALLER_LRS.get(type(guide), _LR) if self.lr is None else self.lr,
            scheduler=partial(CosineAnnealingLR, T_max=epochs),
            seed=self.seed,
            **held,
            **self.options,
        )


def fit_posterior(
    posterior: PosteriorSpec, options: Mapping[str, Any] | None, training: Training
) -> tuple[Guide, History]:
    """Builds a guide and fits it.

    Args:
        posterior: A name, or a function of the model. One whose guide is trained as a point takes ``init=``, too, as
            the constructors of Laplace and SWAG do.
        options: Further arguments of the function.
        training: Data and options.

    Raises:
        TypeError: If ``posterior`` is neither, its guide is none of the model, or one that gradient steps alone do not
            make ready.
        ValueError: If the name is unknown.
    """
    model = training.model
    make, options = _maker(posterior), {} if options is None else dict(options)
    if isinstance(posterior, str) and training.init is not None:
        options = {"init": training.init, **options}
    guide = make(model, **options)
    check_guide(model, guide, argument="posterior")
    if guide.facts.is_ready:
        return guide, training.fit(guide)
    finish = _FINISH.get(type(guide))
    if finish is None:
        raise TypeError(
            f"posterior: a {type(guide).__name__} with parts that gradient steps alone do not make ready cannot be "
            "fitted here; fit it with pyrobnn.fit, or take the parts' families by name."
        )
    point = guides.MAP(model, init=options.pop("init", None))
    history = training.fit(point)
    return finish(make(model, init=point, **options), training), history


def _maker(posterior: PosteriorSpec) -> Callable[..., Guide]:
    if isinstance(posterior, str):
        if posterior not in POSTERIORS:
            known = ", ".join(map(repr, POSTERIORS))
            raise ValueError(f"posterior: expected one of {known}, or a function of the model, got {posterior!r}.")
        return POSTERIORS[posterior]
    if not callable(posterior) or isinstance(posterior, Guide):
        raise TypeError(
            f"posterior: expected a name or a function that builds a guide of the model, such as "
            f"pyrobnn.guides.MeanField, got {posterior!r}."
        )
    return posterior


def _with_curvature(guide: guides.Laplace, training: Training) -> Guide:
    """The prior's precision is what predicts the held-out rows best; without them, what has the largest evidence."""
    batches = training.batches.in_order()
    if training.validation is None:
        return guide.fit(training.model, batches, prior_precision="evidence")
    return guide.fit(training.model, batches, prior_precision="held_out", held_out=training.validation)


def _with_trajectory(guide: guides.SWAG, training: Training) -> Guide:
    """SGD at a constant rate around the point."""
    sgd = partial(torch.optim.SGD, momentum=0.9)
    fit(
        training.model,
        guide,
        training.batches,
        epochs=_SWAG_EPOCHS,
        lr=_SWAG_LR,
        optimizer=sgd,
        callbacks=[guide.collector(start=0)],
        clip_norm=1.0,
        seed=training.seed,
        **training.options,
    )
    return guide


_FINISH: Mapping[type, Callable[..., Guide]] = {guides.Laplace: _with_curvature, guides.SWAG: _with_trajectory}
