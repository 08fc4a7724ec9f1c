r"""Whether the draws of a prediction run in one call, by :func:`torch.func.vmap`.

On a CPU one call saves the Python and the small operations of K runs, which are most of the time of a small network;
large activations of all draws at once only leave the caches. Two properties of a run with one draw decide: the bytes of
its activations, of which there may be 256 KiB, and whether linear layers see several sequences at once, for each of
which torch would copy the weights of all draws. Time of one call as a multiple of that of the loop, for 10 and 100
draws (``python -m benchmarks.vectorization``, one thread with AVX-512):

=============== ===== ==== ========== ==========
network          rows  KiB   10 draws  100 draws
=============== ===== ==== ========== ==========
64-64-10            1    1       0.91       0.25
64-64-10           64   64       0.85       0.42
64-64-10          256  256       0.92       1.02
64-64-10         1024 1024       1.63       1.29
784-400-400-10     16  196       0.94       0.80
784-400-400-10     64  784       1.01       0.88
784-400-400-10    256 3136       1.04       0.96
LeNet               1   74       0.62       0.29
LeNet               4  294       0.71       0.44
LeNet              64 4704       1.04       0.98
LeNet             256  18k       1.17       1.14
ResNet-20           1  256       0.62       0.58
ResNet-20           4 1024       0.83       0.90
attention           1   32                  0.30
attention           4  128       1.17       1.83
attention          64 2048       1.20       1.35
=============== ===== ==== ========== ==========

The choice never depends on time, and is made before the first run, so that a seed gives the same numbers at each call.

Some networks would do something else under vmap. Modules that keep a tensor would keep one of a transform that is over,
hooks would see such tensors, and random numbers would be others than draw by draw. A *trial* with one draw shows that;
it is made once for each model and shape of inputs.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager
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
        has_sequences: Whether linear layers or attention saw several sequences at once.
        fails: Whether vmap could not run it since then.
    """

    nbytes: int
    keeps_tensors: bool
    is_random: bool
    has_sequences: bool
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
        return not on_cpu or not (trial.is_random or trial.has_sequences or trial.nbytes > _LARGEST)

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
        with random_state.watched(self.device) as is_used, _watched_sequences(self.model) as has_sequences:
            _, nbytes = measured(self.model, inputs, run)
            is_random = is_used()
        after = _held_tensors(self.model)
        keeps_tensors = {key: number for key, (_, number) in before.items()} != {
            key: number for key, (_, number) in after.items()
        }
        trial = _Trial(max(1, nbytes), keeps_tensors, is_random, has_sequences())
        if key is not None:
            known[key] = trial
        return trial


@contextmanager
def _watched_sequences(model: nn.Module) -> Iterator[Callable[[], bool]]:
    """A function that says whether linear layers or attention saw several matrices at once in the block so far."""
    seen = [False]

    def look(_: nn.Module, args: tuple[Any, ...]) -> None:
        seen[0] = seen[0] or any(isinstance(x, Tensor) and x.shape[:-2].numel() > 1 for x in args)

    layers = [module for module in model.modules() if isinstance(module, nn.Linear | nn.MultiheadAttention)]
    hooks = [layer.register_forward_pre_hook(look) for layer in layers]
    try:
        yield lambda: seen[0]
    finally:
        for hook in hooks:
            hook.remove()


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
