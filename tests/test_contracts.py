"""Generic code asks for declared members only: it neither probes guides nor asks which family it has."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import pyrobnn
from pyrobnn import guides
from pyrobnn.guides import Guide

PACKAGE = Path(pyrobnn.__file__).parent
KINDS = {name: getattr(guides, name) for name in guides.__all__}
FAMILIES = {name for name, kind in KINDS.items() if issubclass(kind, Guide) and kind is not Guide}
FAMILIES |= {"Ensemble", "TrainedAsPoint"}
POSTERIORS = {"guide", "posterior", "laplace", "chains"}

# What is made for one family, by its name: a read-out of it, a loop that makes it, the method that trains it.
OF_ONE_FAMILY = {
    ("guides", "*"),
    ("finetuning.py", "*"),  # recipes by family
    ("training/snapshot.py", "MAP"),
    ("training/members.py", "DeltaMixture"),
    ("structure/distribution.py", "ConcreteStructure"),
    ("diagnostics/sampling.py", "Chains"),  # energies and temperatures of a sampler
}


def files() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def calls(path: Path) -> Iterator[ast.Call]:
    return (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call))


def names(node: ast.AST) -> set[str]:
    """Plain names, and attributes of anything but torch."""
    attributes = [n for n in ast.walk(node) if isinstance(n, ast.Attribute)]
    owned = {n.attr for n in attributes if not (isinstance(n.value, ast.Name) and n.value.id == "torch")}
    return {n.id for n in ast.walk(node) if isinstance(n, ast.Name)} | owned


@pytest.mark.parametrize("path", files(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_guides_are_not_probed(path: Path) -> None:
    for call in calls(path):
        if isinstance(call.func, ast.Name) and call.func.id in ("hasattr", "getattr", "setattr"):
            subject = call.args[0]
            assert not (names(subject) & POSTERIORS), f"{path}:{call.lineno}: declare what is asked of a guide"


@pytest.mark.parametrize("path", files(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_generic_code_does_not_ask_for_the_family(path: Path) -> None:
    place = str(path.relative_to(PACKAGE))
    for call in calls(path):
        if isinstance(call.func, ast.Name) and call.func.id in ("isinstance", "issubclass"):
            for family in names(call.args[1]) & FAMILIES:
                allowed = {(place, family), (place, "*"), (place.split("/")[0], "*")} & OF_ONE_FAMILY
                assert allowed, f"{path}:{call.lineno}: ask guide.facts instead of isinstance(…, {family})"


@pytest.mark.parametrize("path", files(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_files_are_short(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 300
