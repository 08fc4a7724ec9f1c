"""Pages of the API: one for each public module, with a table of its names and their documentation below."""

from __future__ import annotations

from typing import Any

from website.docstrings import markdown, resolver
from website.public_names import PublicModule, PublicNames

__all__ = ["index", "page_of", "pages"]

# The order of the index. Modules that are not named here come after those that are, by their names.
GROUPS = {
    "Begin here": ["pyrobnn", "pyrobnn.sklearn", "pyrobnn.lora", "pyrobnn.lightning"],
    "Build a model": ["pyrobnn.likelihoods", "pyrobnn.priors", "pyrobnn.structure", "pyrobnn.layers", "pyrobnn.lora"],
    "Fit a posterior": [
        "pyrobnn.guides",
        "pyrobnn.training",
        "pyrobnn.training.trackers",
        "pyrobnn.training.trackers",
        "pyrobnn.objectives",
        "pyrobnn.estimators",
        "pyrobnn.schedules",
        "pyrobnn.sampling",
        "pyrobnn.distillation",
        "pyrobnn.function_space",
    ],
    "Use and judge it": [
        "pyrobnn.prediction",
        "pyrobnn.metrics",
        "pyrobnn.calibration",
        "pyrobnn.conformal",
        "pyrobnn.detection",
        "pyrobnn.decisions",
        "pyrobnn.diagnostics",
        "pyrobnn.diagnostics.generalization",
        "pyrobnn.influence",
        "pyrobnn.robustness",
        "pyrobnn.robustness.training",
        "pyrobnn.plots",
        "pyrobnn.assessment",
        "pyrobnn.checkpoint",
        "pyrobnn.exporting",
    ],
    "Extend the library": ["pyrobnn.model", "pyrobnn.steps", "pyrobnn.curvature", "pyrobnn.reporting"],
}


def page_of(module: str) -> str:
    """The address of a module's page."""
    return f"api/{module}.md"


def pages(names: PublicNames) -> dict[str, str]:
    """The text of each page by its address, in the order of the index."""
    ordered = [module for modules in groups(names).values() for module in modules]
    return {page_of(module): _page(names.modules[module], names) for module in ordered}


def groups(names: PublicNames) -> dict[str, list[str]]:
    """Modules that there are, by heading of the index."""
    listed = {module for modules in GROUPS.values() for module in modules}
    found = {title: [module for module in modules if module in names.modules] for title, modules in GROUPS.items()}
    rest = [module for module in names.modules if module not in listed]
    return {title: modules for title, modules in (found | {"Other packages": rest}).items() if modules}


def index(names: PublicNames) -> str:
    """The list of all modules that stands at the end of docs/api.md."""
    lines = []
    for title, modules in groups(names).items():
        lines += [f"## {title}", "", "| module | contents |", "|---|---|"]
        for module in modules:
            lines.append(f"| [`{module}`]({page_of(module)}) | {_first_sentence(names.modules[module].module)} |")
        lines.append("")
    return "\n".join(lines)


def _page(page: PublicModule, names: PublicNames) -> str:
    # The empty link is an anchor, by which roles that name the module find this page.
    lines = [f"# {page.path}", "", f"[](){{ #{page.path} }}", "", _text(page.module, names), ""]
    classes = {path: found for path, found in page.names.items() if found.is_class}
    functions = {path: found for path, found in page.names.items() if not found.is_class}
    for kind, members in (("class", classes), ("function", functions)):
        if members:
            lines += [f"| {kind} | what it is |", "|---|---|"]
            lines += [f"| [`{_name(path)}`][{path}] | {_first_sentence(found)} |" for path, found in members.items()]
            lines.append("")
    if page.elsewhere:
        others = ", ".join(f"[`{name}`][{path}]" for name, path in page.elsewhere.items())
        lines += [f"Also here: {others}.", ""]
    for path in [*classes, *functions]:
        lines += [f"::: {path}", ""]
    return "\n".join(lines)


def _name(path: str) -> str:
    return path.rpartition(".")[2]


def _text(item: Any, names: PublicNames) -> str:
    return "" if item.docstring is None else markdown(item.docstring.value, resolver(item, names))


def _first_sentence(item: Any) -> str:
    if item.docstring is None:
        return ""
    text = markdown(item.docstring.value, lambda target: None)
    return text.strip().split("\n\n")[0].replace("\n", " ").replace("|", r"\|")
