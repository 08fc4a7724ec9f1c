"""Packages that only a part of the library needs, which are installed as extras and imported where they are used."""

from __future__ import annotations

import importlib
from types import ModuleType

from pyrobnn.core.pyro_compat import validation_kept

__all__ = [
    "import_extra",
    "import_gpytorch",
    "import_mlflow",
    "import_peft",
    "import_tensorboard",
    "import_wandb",
    "import_zuko",
]


def import_extra(name: str, module: str, extra: str, package: str | None = None) -> ModuleType:
    """A module of an optional package.

    Args:
        name: Who needs it, for the message.
        module: The module.
        extra: The extra of this library that installs it.
        package: The package, if it is not called like the module.

    Raises:
        ImportError: If it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        package = package or module
        if error.name is None or error.name.partition(".")[0] != package:
            raise
        raise ImportError(
            f"{name}: it needs the package {package}, which is not installed; install it with pip install "
            f"'pyrobnn[{extra}]'.",
            name=package,
        ) from error


def import_tensorboard(name: str) -> ModuleType:
    """torch's writer of TensorBoard's files; arguments and errors as for :func:`import_extra`."""
    return import_extra(name, "torch.utils.tensorboard", "trackers", "tensorboard")


def import_mlflow(name: str) -> ModuleType:
    """MLflow; arguments and errors as for :func:`import_extra`."""
    return import_extra(name, "mlflow", "trackers")


def import_wandb(name: str) -> ModuleType:
    """Weights & Biases; arguments and errors as for :func:`import_extra`."""
    return import_extra(name, "wandb", "trackers")


def import_gpytorch(name: str) -> ModuleType:
    """The package of Gaussian processes.

    Args:
        name: Who needs it, for the message.

    Raises:
        ImportError: If it is not installed.
    """
    try:
        import gpytorch
    except ModuleNotFoundError as error:
        if error.name != "gpytorch":
            raise
        raise ImportError(
            f"{name}: it needs the package gpytorch, which is not installed; install it with pip install "
            "'pyrobnn[gp]'.",
            name="gpytorch",
        ) from error
    found: ModuleType = gpytorch
    return found


def import_peft(name: str) -> ModuleType:
    """The package of adapters; arguments and errors as for :func:`import_extra`."""
    return import_extra(name, "peft", "lora")


def import_zuko(name: str) -> ModuleType:
    """The package of normalizing flows; torch's validation of distributions, which its import ends, is kept.

    Args:
        name: Who needs it, for the message.

    Raises:
        ImportError: If it is not installed.
    """
    try:
        with validation_kept():
            import zuko
    except ModuleNotFoundError as error:
        if error.name != "zuko":
            raise
        raise ImportError(
            f"{name}: it needs the package zuko, which is not installed; install it with pip install 'pyrobnn[flows]'.",
            name="zuko",
        ) from error
    return zuko
