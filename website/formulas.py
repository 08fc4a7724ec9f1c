"""Formulas as MathML, which browsers draw themselves: no script, no fonts, nothing to load from elsewhere."""

from __future__ import annotations

import html
import re

from latex2mathml.converter import convert

__all__ = ["with_formulas"]

INLINE = re.compile(r'<span class="arithmatex">\\\((.*?)\\\)</span>', re.DOTALL)
DISPLAY = re.compile(r'<div class="arithmatex">\s*\\\[(.*?)\\\]\s*</div>', re.DOTALL)


def with_formulas(page: str) -> str:
    """The page with the formulas that the Markdown extension ``arithmatex`` marked drawn as MathML."""
    page = DISPLAY.sub(lambda match: f'<div class="formula">{_mathml(match[1], "block")}</div>', page)
    return INLINE.sub(lambda match: _mathml(match[1], "inline"), page)


def _mathml(formula: str, display: str) -> str:
    return convert(html.unescape(formula).strip(), display=display)
