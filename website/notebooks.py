"""Tutorials as pages: the committed notebooks with the outputs that they were committed with."""

from __future__ import annotations

import base64
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbformat

__all__ = ["Tutorial", "read"]

ESCAPES = re.compile(r"\x1b\[[0-9;]*m")
NOTEBOOK_LINK = re.compile(r"\]\((?!https?:)([\w./-]+)\.ipynb")
NOTEBOOK_NAME = re.compile(r"(?<!\[)`(\d\d_\w+)\.ipynb`")
DOCS_LINK = re.compile(r"\]\(\.\./docs/([\w./-]+)")
# Tags and styles of tables that notebooks draw themselves.
STYLE = re.compile(r"<style.*?</style>|\sstyle=\"[^\"]*\"|\sborder=\"[^\"]*\"|\sclass=\"dataframe\"", re.DOTALL)


@dataclass(frozen=True)
class Tutorial:
    """A page and its figures.

    Attributes:
        name: Of the notebook, without its ending.
        title: Its heading.
        summary: The first sentences below it, three at most.
        text: The page in Markdown.
        figures: PNG files by name; the page expects them in the folder ``NAME_files`` beside it.
    """

    name: str
    title: str
    summary: str
    text: str
    figures: dict[str, bytes]


def read(path: Path) -> Tutorial:
    """Reads a notebook.

    Raises:
        ValueError: If it does not begin with a heading.
    """
    notebook = nbformat.read(path, as_version=4)
    figures: dict[str, bytes] = {}
    parts = [part for cell in notebook.cells for part in _cell(cell, path.stem, figures)]
    heading = re.match(r"# (.+?)\n+(.*)", parts[0], re.DOTALL) if parts else None
    if heading is None:
        raise ValueError(f"{path.name}: expected a first cell with a heading, '# Title', and a paragraph.")
    note = f"This page is the notebook `tutorials/{path.name}` with its outputs; it runs as it is."
    parts.insert(1, f'!!! note ""\n    {note}')
    paragraph = heading[2].strip().split("\n\n")[0].replace("\n", " ")
    sentences = re.split(r"(?<=[.?!]) (?=[A-Z])", paragraph)[:3]
    summary = " ".join(sentence for sentence in sentences if sentence[-1] in ".?!")
    return Tutorial(path.stem, heading[1].strip(), summary, "\n\n".join(parts) + "\n", figures)


def _cell(cell: Any, name: str, figures: dict[str, bytes]) -> list[str]:
    if cell.cell_type == "markdown":
        text = NOTEBOOK_NAME.sub(r"[`\1`](\1.md)", cell.source.strip())
        text = NOTEBOOK_LINK.sub(r"](\1.md", text)
        return [DOCS_LINK.sub(r"](../\1", text)]
    if cell.cell_type != "code" or not cell.source.strip():
        return []
    parts = [_fenced("python", cell.source)]
    return parts + [_output(output, name, figures) for output in cell.outputs]


def _output(output: Any, name: str, figures: dict[str, bytes]) -> str:
    if output.output_type == "stream":
        return _fenced("text", ESCAPES.sub("", output.text), "output")
    data = output.get("data", {})
    if "image/png" in data:
        file = f"{len(figures) + 1}.png"
        figures[file] = base64.b64decode(data["image/png"])
        # A link to itself, so that a phone can open it at its own size.
        return f"[![Figure {len(figures)}]({name}_files/{file})]({name}_files/{file})"
    if "text/html" in data:
        html = STYLE.sub("", data["text/html"])
        return f'<div class="notebook-table">{" ".join(html.split())}</div>'
    return _fenced("text", ESCAPES.sub("", data.get("text/plain", "")), "output")


def _fenced(language: str, text: str, kind: str = "") -> str:
    fence = "```" if "```" not in text else "````"
    opening = f"{fence}{{ .{language} .{kind} }}" if kind else f"{fence}{language}"
    return f"{opening}\n{text.rstrip()}\n{fence}"
