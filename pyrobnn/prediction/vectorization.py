r"""Whether the draws of a prediction run in one call, by :func:`torch.func.vmap`.

On a CPU one call saves the Python and the small operations of K runs, which are most of the time of a small network;
large activations of all draws at once only leave the caches. The choice never depends on time, and is made before the
first run, so that a seed gives the same numbers at each call.

Some networks would do something else under vmap. Modules that keep a tensor would keep one of a transform that is over,
hooks would see such tensors, and random numbers would be others than draw by draw. A *trial* with one draw shows that;
it is made once for each model and shape of inputs.
"""

from __future__ import annotations

import weakref
from collections.abc import Hashable, Mapping
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from pyrobnn.core import random_state
from pyrobnn.core.pyro_compat import has_forward_hooks, version
from pyrobnn.core.trees import leaves, map_leaves
from pyrobnn.prediction.rows import Run, measured

__all__ = ["Method", "Vectorization"]

Method = Literal["auto", "loop", "vmap"]

_LARGEST = 256 * 2**10  # bytes of the activations of a draw up to which one call was faster on a CPU
_FEWEST = 4  # draws


class _Trial(NamedTuple):
    """What a run with one draw has shown.

    Attributes:
        nbytes: Memory for the activations of a draw.
        keeps_tensors: Whether modules hold other tensors after it.
        is_random: Whether it drew random numbers.
        fails: Whether vmap could not run it since then.
    """

    nbytes: int
    keeps_tensors: bool
    is_random: bool
    fails: bool = False


_trials: weakref.WeakKeyDictionary[nn.Module, dict[Hashable, _Trial]] = weakref.WeakKeyDictionary()


class Vectorization:
    """How the draws of a model run.

    Args:
        model: The model.
        method: ``"loop"``, ``"vmap"`` or ``"auto"``.
        device: The model's device.

    Raises:
        ValueError: If ``method`` is unknown or cannot run this network.
    """

    def __init__(self, model: nn.Module, method: Method, device: torch.device) -> None:
        if method not in ("auto", "loop", "vmap"):
            raise ValueError(f"method: expected 'auto', 'loop' or 'vmap', got {method!r}.")
        recurrent = [type(module).__name__ for module in model.modules() if isinstance(module, nn.RNNBase)]
        if method == "vmap" and recurrent:
            raise ValueError(f"method: torch cannot vmap {recurrent[0]} layers; use 'loop', or 'auto'.")
        self.model, self.device = model, device
        self.method: Method = "loop" if recurrent else method

    @property
    def is_requested(self) -> bool:
        """Whether the caller asked for vmap, so that nothing else is tried."""
        return self.method == "vmap"

    def serves(self, draws: Mapping[str, Tensor], inputs: Any, run: Run) -> bool:
        """Whether these draws ``{site: [k, …]}`` run in one call.

        Args:
            draws: The draws.
            inputs: Inputs of one call of the network.
            run: The network under one draw.
        """
        if self.method != "auto":
            return self.method == "vmap"
        on_cpu = self.device.type == "cpu"
        if on_cpu and not self._may_pay_off(draws, inputs):
            return False
        try:
            trial = self._trial(inputs, run)
        except Exception:  # whatever the network raises, it raises again draw by draw
            return False
        if trial.fails or trial.keeps_tensors:
            return False
        return not on_cpu or (not trial.is_random and trial.nbytes <= _LARGEST)

    def nbytes(self, inputs: Any, run: Run) -> int:
        """Memory for the activations of one draw, estimated from one run."""
        return self._trial(inputs, run).nbytes

    def fail(self, inputs: Any) -> None:
        """Has draws of this model run one by one from now on: vmap could not run it with such inputs."""
        self.method = "loop"
        known, key = _trials.setdefault(self.model, {}), _key(inputs)
        if key in known:
            known[key] = known[key]._replace(fails=True)

    def _may_pay_off(self, draws: Mapping[str, Tensor], inputs: Any) -> bool:
        """Whether that can be on a CPU, as far as it is seen without a run."""
        tensors = list(leaves(inputs))
        return (
            len(next(iter(draws.values()))) >= _FEWEST
            and all(isinstance(leaf, Tensor) for leaf in tensors)
            and sum(leaf.nbytes for leaf in tensors) <= _LARGEST
            and all(value.dtype in (torch.float32, torch.float64) for value in draws.values())
            and not torch.is_autocast_enabled("cpu")
            and not has_forward_hooks(self.model)
        )

    def _trial(self, inputs: Any, run: Run) -> _Trial:
        known, key = _trials.setdefault(self.model, {}), _key(inputs)
        if key in known:
            return known[key]
        before = _held_tensors(self.model)
        with random_state.watched(self.device) as is_used:
            _, nbytes = measured(self.model, inputs, run)
            is_random = is_used()
        after = _held_tensors(self.model)
        keeps_tensors = {key: number for key, (_, number) in before.items()} != {
            key: number for key, (_, number) in after.items()
        }
        trial = _Trial(max(1, nbytes), keeps_tensors, is_random)
        if key is not None:
            known[key] = trial
        return trial


def _key(inputs: Any) -> Hashable:
    """Equal for inputs with tensors of the same shapes and dtypes at the same places; None for other objects."""
    if isinstance(inputs, Tensor):
        return inputs.shape, inputs.dtype
    if not all(isinstance(leaf, Tensor | bool | int | float | str) for leaf in leaves(inputs)):
        return None
    return repr(map_leaves(lambda leaf: (leaf.shape, leaf.dtype) if isinstance(leaf, Tensor) else leaf, inputs))


def _held_tensors(model: nn.Module) -> dict[int, tuple[Tensor, int]]:
    """The tensors that modules refer to, with their versions, by identity (which lasts as long as the result)."""
    held = (leaf for module in model.modules() for leaf in leaves(vars(module)))
    return {id(leaf): (leaf, version(leaf)) for leaf in held if isinstance(leaf, Tensor)}
