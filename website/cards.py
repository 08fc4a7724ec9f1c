"""A Markdown extension: cells of tables know their column's name, so that narrow screens can show rows as cards."""

from __future__ import annotations

from typing import Any
from xml.etree.ElementTree import Element

from markdown import Markdown
from markdown.extensions import Extension
from markdown.treeprocessors import Treeprocessor

__all__ = ["CardsExtension", "makeExtension"]


class _Label(Treeprocessor):
    def run(self, root: Element) -> None:
        for table in root.iter("table"):
            names = ["".join(cell.itertext()).strip() for cell in table.iter("th")]
            table.set("data-columns", str(len(names)))
            above = ""
            for row in table.iter("tr"):
                cells = row.findall("td")
                for cell, name in zip(cells, names, strict=False):
                    cell.set("data-label", name)
                if cells:
                    text = "".join(cells[0].itertext()).strip()
                    if text:
                        above = text
                    else:
                        cells[0].set("data-above", above)


class CardsExtension(Extension):
    """Sets ``data-columns`` of tables, ``data-label`` of cells and ``data-above`` of empty first ones."""

    def extendMarkdown(self, md: Markdown) -> None:
        """Registers the tree processor, after those that make the text of cells."""
        md.treeprocessors.register(_Label(md), "cards", 1)


def makeExtension(**options: Any) -> CardsExtension:
    """What Markdown calls."""
    return CardsExtension(**options)
