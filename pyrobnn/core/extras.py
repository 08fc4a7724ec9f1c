"""Packages that only a part of the library needs, which are installed as extras and imported where they are used."""

from __future__ import annotations

from types import ModuleType

from pyrobnn.core.pyro_compat import validation_kept

__all__ = ["import_gpytorch", "import_zuko"]


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
