"""Predictions of a loader batch by batch, with the inputs that they are of."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from pyrobnn.core.batches import Batch, Reader, inputs_of
from pyrobnn.core.trees import leaves
from pyrobnn.prediction import Prediction, predict_batches

__all__ = ["Seen", "Source", "check_loader"]


@dataclass(frozen=True, eq=False)
class Seen:
    """One batch: its inputs, their prediction, their targets, and the number of the first of its inputs."""

    inputs: Any
    prediction: Prediction
    targets: Tensor | None
    first: int


@dataclass(eq=False)
class Source:
    """How predictions are made, and what inputs look like.

    Attributes:
        model: The model.
        guide: Its posterior.
        num_samples: Number of posterior draws.
        seed: Seeds the draws.
        batch: How batches are read.
        options: Further options of :func:`~pyrobnn.predict_batches`.
        shapes: Shapes of the inputs of one datum of the test data, if they have one.
    """

    model: Any
    guide: Any
    num_samples: int
    seed: int
    batch: Reader | None
    options: dict[str, Any]
    shapes: list[tuple[int, ...]] | None = field(default=None)

    def stream(self, name: str, data: Iterable[Any], *, targets: bool) -> Iterator[Seen]:
        """The batches of a loader.

        Args:
            name: The argument that it came as, for errors.
            data: The loader.
            targets: Whether it must have targets; otherwise those that it has are left out.

        Raises:
            ValueError: If there are no inputs, or no targets.
        """
        inputs: list[Any] = []

        def read(raw: Any) -> Any:
            x, y = inputs_of(raw, argument=name, reader=self.batch)
            if targets and y is None:
                raise ValueError(f"{name}: expected a loader of (x, y), got inputs without targets.")
            inputs[:] = [x]
            return Batch.of(x, y, argument=name) if targets else (x, None)

        first = 0
        predicted = predict_batches(
            self.model, self.guide, data, self.num_samples, batch=read, seed=self.seed, **self.options
        )
        for prediction, y in predicted:
            yield Seen(inputs[0], prediction, y, first)
            first += len(prediction)
        if not first:
            raise ValueError(f"{name}: it holds no inputs.")

    def check_shapes(self, name: str, inputs: Any) -> None:
        """Refuses inputs of other shapes than those of the test data, where these have one shape.

        Raises:
            ValueError: If shapes differ.
        """
        found = shapes_of(inputs)
        if self.shapes is not None and found != self.shapes:
            raise ValueError(f"{name}: expected inputs of shapes {self.shapes} as in test, got {found}.")


def shapes_of(inputs: Any) -> list[tuple[int, ...]]:
    """Shapes of the tensors among the inputs of a batch, without the first dimension."""
    return [tuple(leaf.shape[1:]) for leaf in leaves(inputs) if isinstance(leaf, Tensor)]


def check_loader(name: str, data: Any) -> None:
    """Refuses what is no loader.

    Raises:
        TypeError: If it is not iterable, or inputs without a loader.
    """
    if isinstance(data, Tensor | Mapping | str | bytes | Batch | tuple) or not isinstance(data, Iterable):
        kind = type(data).__name__
        raise TypeError(f"{name}: expected a loader, or a list of batches such as [(x, y)], got {kind}.")
    if name == "test" and isinstance(data, Iterator):
        raise TypeError(
            f"{name}: a {type(data).__name__} can be read only once; pass a DataLoader or a list of batches."
        )
