r"""The low-rank adapters in a network: :math:`W x + \frac{\alpha}{r} B (A x)` with W frozen (Hu et al. 2022).

PEFT keeps :math:`A \in \mathbb{R}^{r \times i}` and :math:`B \in \mathbb{R}^{o \times r}` as layers
``lora_A.<adapter>`` and ``lora_B.<adapter>`` inside the layer they adapt; of embeddings they are the parameters
``lora_embedding_A`` and ``lora_embedding_B``.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from pyrobnn.core.explanations import explained
from pyrobnn.core.extras import import_peft

__all__ = ["adapter_parameters", "adapters", "is_first_factor", "is_second_factor"]

_FIRST, _SECOND = ("lora_A", "lora_embedding_A"), ("lora_B", "lora_embedding_B")


@explained
def adapters(net: nn.Module) -> list[str]:
    """Names of the layers that hold the active adapters' weights, in the order in which they are defined.

    The last one is what ``guides.Laplace(..., last_layer=)`` takes for a last layer of adapters.

    Args:
        net: A network with LoRA adapters made by PEFT.

    Raises:
        ImportError: If PEFT is not installed.
        TypeError: If ``net`` is no module.
        ValueError: If it has no adapters, or they are merged into the base or disabled.
    """
    owners = (name.rpartition(".")[0] for name in adapter_parameters(net))
    return list(dict.fromkeys(owners))


def adapter_parameters(net: nn.Module) -> dict[str, nn.Parameter]:
    """The factors A and B of the active adapters, by their names in the network.

    Raises:
        ImportError: If PEFT is not installed.
        TypeError: If ``net`` is no module.
        ValueError: If it has no adapters, or they are merged into the base or disabled.
    """
    peft = import_peft("lora")
    if not isinstance(net, nn.Module):
        raise TypeError(f"net: expected a torch.nn.Module with LoRA adapters, got {type(net).__name__}.")
    layers = {
        name: module
        for name, module in net.named_modules()
        if isinstance(module, peft.tuners.tuners_utils.BaseTunerLayer)
    }
    chosen = set(_prefixes(layers))
    found = {
        name: parameter
        for name, parameter in net.named_parameters()
        if name.removesuffix(".weight").removesuffix(".bias") in chosen
    }
    if not found:
        raise ValueError(
            f"net: the {type(net).__name__} has no LoRA adapters; make them by peft.get_peft_model(net, "
            "peft.LoraConfig(...)), and do not merge them into the base."
        )
    for name, module in layers.items():
        if module.merged:
            raise ValueError(
                f"net: the adapters of {name!r} are merged into its base weights, so that draws of them would have no "
                "effect; call net.unmerge_adapter() first."
            )
        if module.disable_adapters:
            raise ValueError(f"net: the adapters of {name!r} are disabled; call net.enable_adapter_layers() first.")
    return found


def is_first_factor(name: str) -> bool:
    """Whether a parameter is a factor A, by its name."""
    return any(part in _FIRST for part in name.split("."))


def is_second_factor(name: str) -> bool:
    """Whether a parameter is a factor B, by its name."""
    return any(part in _SECOND for part in name.split("."))


def _prefixes(layers: dict[str, nn.Module]) -> Iterator[str]:
    """Where the active adapters of the layers keep their factors."""
    for name, layer in layers.items():
        for adapter in layer.active_adapters:  # type: ignore[union-attr]
            for local in (*_FIRST, *_SECOND):
                yield f"{name}.{local}.{adapter}" if name else f"{local}.{adapter}"
