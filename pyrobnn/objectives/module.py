"""An objective as a module, which returns the loss when it is called with the model's arguments."""

from __future__ import annotations

import sys
from typing import Any

import torch
from pyro.infer.elbo import ELBOModule

__all__ = ["ObjectiveModule"]


class ObjectiveModule(ELBOModule):
    """Pyro's module of an objective. ``torch.compile`` runs it as it is: Dynamo cannot trace Pyro's handlers."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The loss."""
        if "torch._dynamo" not in sys.modules:  # nothing is compiled, and the import takes a second
            return super().forward(*args, **kwargs)
        return torch.compiler.disable(super().forward)(*args, **kwargs)
