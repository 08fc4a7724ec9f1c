"""Detectors: from what a network computes to a score of each input, larger for what is more abnormal.

Under K posterior draws a score has three *forms*:

* ``"averaged"``: the score of the averaged prediction;
* ``"mean"``: the mean over draws of the score of each;
* ``"variance"``: the variance over draws of the score of each.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar, Literal, Self, get_args

import torch
from torch import Tensor

from pyrobnn.core.explanations import explained
from pyrobnn.core.fitted import Fitted
from pyrobnn.detection.network_outputs import NetworkOutputs, joined

__all__ = ["FORMS", "Detector", "Form", "check_forms"]

Form = Literal["averaged", "mean", "variance"]
FORMS: tuple[Form, ...] = get_args(Form)


def check_forms(forms: object) -> tuple[Form, ...]:
    """Forms in their usual order.

    Raises:
        ValueError: If one is unknown, or there is none.
    """
    listed = [forms] if isinstance(forms, str) else list(forms) if isinstance(forms, Sequence) else []
    if not listed or any(form not in FORMS for form in listed):
        raise ValueError(f"forms: expected some of {', '.join(map(repr, FORMS))}, got {forms!r}.")
    return tuple(form for form in FORMS if form in listed)


class Detector(Fitted):
    """A score of inputs, larger for what is more abnormal: a pure function once it is fitted.

    Args:
        names: Buffers that hold what is found from training data.

    Attributes:
        name: Its name in tables.
        needs_features: Whether it reads the last layer's inputs.
        needs_training: Whether it is fitted to training data.
        forms: The forms it has.
    """

    name: ClassVar[str]
    needs_features: ClassVar[bool] = False
    needs_training: ClassVar[bool] = False
    forms: tuple[Form, ...] = FORMS

    @abstractmethod
    def scores(self, outputs: NetworkOutputs, forms: tuple[Form, ...]) -> dict[Form, Tensor]:
        """The score in several forms, each ``[N]``, of one batch."""

    @explained
    @torch.no_grad()
    def forward(self, outputs: NetworkOutputs | Iterable[NetworkOutputs], form: Form = "averaged") -> Tensor:
        """The score of each input, ``[N]``.

        Args:
            outputs: What the network computes of them (:func:`~pyrobnn.detection.network_outputs`), one batch or
                several.
            form: Which form.

        Raises:
            RuntimeError: If it is not fitted.
            TypeError: If there are no such outputs.
            ValueError: If it has no such form, or the outputs do not fit.
        """
        (wanted,) = check_forms([form])
        if wanted not in self.forms:
            raise ValueError(f"form: {self.name} has {', '.join(map(repr, self.forms))} only, got {form!r}.")
        found = [self.scores(batch, (wanted,))[wanted] for batch in joined(outputs)]
        if not found:
            raise ValueError("outputs: there are none.")
        return torch.cat(found)

    @explained
    @torch.no_grad()
    def fit(self, outputs: NetworkOutputs | Iterable[NetworkOutputs]) -> Self:
        """Fits the detector to training data, batch by batch; one that needs none is left as it is.

        Args:
            outputs: What the network computes of them, with ``features=True`` and labels where it needs these.

        Returns:
            The detector.

        Raises:
            TypeError: If there are no such outputs.
            ValueError: If they do not fit, or are too few.
        """
        state = self.start()
        for batch in joined(outputs):
            self.add(state, batch)
        self.finish(state)
        return self

    def start(self) -> Any:
        """An empty state of a fit."""
        return None

    def add(self, state: Any, outputs: NetworkOutputs) -> None:
        """Adds a batch of training data to the state."""

    def finish(self, state: Any) -> None:
        """Stores what was found."""

    @property
    def is_fitted(self) -> bool:
        """Whether it needs no training data, or has seen them."""
        return not self.needs_training or bool(self.num_data)


def reduced(by_draw: Tensor, forms: tuple[Form, ...]) -> dict[Form, Tensor]:
    """The mean and the variance over draws ``[K, N]``, those of them that are wanted."""
    found: dict[Form, Tensor] = {}
    if "mean" in forms:
        found["mean"] = by_draw.mean(0)
    if "variance" in forms:
        found["variance"] = by_draw.var(0, correction=0)
    return found
