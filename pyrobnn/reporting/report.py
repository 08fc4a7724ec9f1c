"""A report as one HTML file that needs nothing else: no network, no script, no template engine.

Figures are embedded, the style sheet is inline, and a content security policy forbids the browser to load
anything. All text is escaped. The page follows the reader's light or dark setting and reads on a phone.

    report = Report("Rotated digits", "mean-field posterior, 20 draws")
    report.section("Calibration", "Temperature was chosen on the validation set.")
    report.table([{"method": "MAP", "ECE": 0.041}], caption="Test set", formats={"ECE": ".3f"})
    report.figure(plots.reliability(probs, y).figure, "Reliability", alt="Accuracy falls below confidence.")
    report.write("report.html")
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Mapping, Sequence
from html import escape
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from pyrobnn.core.files import check_path
from pyrobnn.reporting.pixels import pixels
from pyrobnn.reporting.png import Png, png_of_figure, png_of_image
from pyrobnn.reporting.style import STYLE

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Format = str | Callable[..., str]


class Report:
    """A page that grows from top to bottom: each call appends to the current section.

    Args:
        title: Heading of the page.
        subtitle: One line below it.

    Raises:
        ValueError: If `title` is blank.
    """

    def __init__(self, title: str, subtitle: str = "") -> None:
        _require_text(title, "title")
        self._title = title
        self._subtitle = subtitle
        self._sections: list[tuple[str, list[str]]] = [("", [])]  # what comes before the first heading

    def section(self, title: str, text: str = "") -> None:
        """Begin a section.

        Args:
            title: Its heading; the page lists all of them at the top.
            text: Plain text; a blank line begins a new paragraph.

        Raises:
            ValueError: If `title` is blank.
        """
        _require_text(title, "title")
        self._sections.append((title, []))
        self.paragraph(text)

    def paragraph(self, text: str) -> None:
        """Append plain text; a blank line begins a new paragraph."""
        for part in text.split("\n\n"):
            if part.strip():
                self._append(f"<p>{escape(part.strip())}</p>")

    def table(
        self,
        rows: Sequence[Mapping[str, object]],
        caption: str = "",
        formats: Mapping[str, Format] | None = None,
    ) -> None:
        """Append a table; its columns are the keys of the rows in the order in which they first appear.

        A value that is missing or ``None`` shows as a dash. Columns of numbers are set to the right, and
        floating-point numbers without a format of their own get four significant digits.

        Args:
            rows: One mapping from column to value per row.
            caption: What the table shows.
            formats: Column to format specification (``".3f"``) or to a function from value to text.

        Raises:
            ValueError: If there are no rows or no columns, or if `formats` names a column that no row has or
                does not fit a value.
        """
        columns = list(dict.fromkeys(column for row in rows for column in row))
        if not columns:
            raise ValueError(f"rows: expected at least one row with a column, got {len(rows)} rows without.")
        formats = formats or {}
        if unknown := [column for column in formats if column not in columns]:
            raise ValueError(f"formats: expected keys among the columns {columns}, got {unknown}.")

        body = [[_scalar(row.get(column)) for column in columns] for row in rows]
        kinds = [_kind(values) for values in zip(*body, strict=True)]
        head = "".join(
            f'<th scope="col"{kind}>{escape(str(column))}</th>' for column, kind in zip(columns, kinds, strict=True)
        )
        lines = [
            "".join(
                f'<td{kind} data-label="{escape(str(column))}">{escape(_cell(value, column, formats.get(column)))}</td>'
                for value, column, kind in zip(values, columns, kinds, strict=True)
            )
            for values in body
        ]
        label = escape(caption or "table")
        # On a phone the rows of a wide table are shown below each other, each number beside the name of its column.
        is_wide = len(columns) > 4 or (len(columns) > 2 and any("text" in kind for kind in kinds))
        table = '<table class="cards">' if is_wide else "<table>"
        self._append(
            f'<div class="wide" role="region" tabindex="0" aria-label="{label}">\n{table}'
            + (f"<caption>{escape(caption)}</caption>" if caption else "")
            + f"\n<thead><tr>{head}</tr></thead>\n<tbody>\n"
            + "\n".join(f"<tr>{line}</tr>" for line in lines)
            + "\n</tbody>\n</table>\n</div>"
        )

    def figure(self, fig: Figure, caption: str, alt: str) -> None:
        """Append a figure as an embedded PNG at twice its resolution, and close it.

        Args:
            fig: A matplotlib figure; of the axes that :mod:`pyrobnn.plots` returns, their ``.figure``.
            caption: Line below the figure.
            alt: What a reader who cannot see the figure should learn from it.

        Raises:
            TypeError: If `fig` is not a figure.
            ValueError: If `alt` is blank.
        """
        self._append(_figure(fig, caption, alt))

    def figures(self, panels: Sequence[tuple[Figure, str, str]]) -> None:
        """Append small figures side by side, as many in a row as the screen has room for.

        Args:
            panels: Figures with their captions and alternative texts, as for :meth:`figure`; of the size
                :data:`~pyrobnn.reporting.figures.PANEL` they are legible on a phone.

        Raises:
            TypeError: If one is not a figure.
            ValueError: If there is none, or an alternative text is blank.
        """
        if not panels:
            raise ValueError("panels: expected at least one figure, got none.")
        self._append("\n".join(['<div class="figures">', *(_figure(*panel) for panel in panels), "</div>"]))

    def images(self, images: Tensor, captions: Sequence[str], alt: str) -> None:
        """Append images, each above its caption, as many in a row as the screen has room for.

        Args:
            images: ``[N, H, W]`` or ``[N, 1 or 3, H, W]``, as for :func:`pyrobnn.plots.image_grid`.
            captions: One for each; a line break begins a new line.
            alt: What the images show; the caption of each follows it.

        Raises:
            TypeError: If the images are neither floating point nor ``uint8``.
            ValueError: If shapes or the number of captions do not fit, or `alt` is blank.
        """
        _require_text(alt, "alt")
        if len(captions) != len(images):
            raise ValueError(f"captions: expected one for each of {len(images)} images, got {len(captions)}.")
        figures = [
            _element(png_of_image(image), caption, f"{alt}: {' '.join(caption.split())}")
            for image, caption in zip(pixels(images), captions, strict=True)
        ]
        self._append("\n".join(['<div class="images">', *figures, "</div>"]))

    def preformatted(self, text: str) -> None:
        """Append text as it is, in a fixed-width font: a model description, a stack trace, a command."""
        # HTML drops a newline right after <pre>; this one goes instead of the text's own.
        self._append(f'<pre tabindex="0">\n{escape(text)}</pre>')

    def write(self, path: str | Path) -> Path:
        """Write the page; readers of `path` see the old page or the new one, never half of it.

        Args:
            path: File to write or replace; its folder is made if need be.

        Returns:
            The path.

        Raises:
            ValueError: If the path is empty.
            OSError: If it is a directory, or cannot be written to.
        """
        path = check_path("path", path)
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, "it is a directory, expected a file", str(path))
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_name(f".{path.name}.{os.getpid()}.tmp")  # same folder, so the same file system
        try:
            draft.write_text(self._page(), encoding="utf-8")
            draft.replace(path)
        finally:
            draft.unlink(missing_ok=True)
        return path

    def _append(self, block: str) -> None:
        self._sections[-1][1].append(block)

    def _page(self) -> str:
        title = escape(self._title)
        titles = [escape(name) for name, _ in self._sections[1:]]
        links = "".join(f'<li><a href="#s{i}">{name}</a></li>' for i, name in enumerate(titles, start=1))
        parts = [f"<header>\n<h1>{title}</h1>"]
        parts += [f'<p class="subtitle">{escape(self._subtitle)}</p>'] if self._subtitle else []
        parts += ["</header>"]
        parts += [f'<nav aria-label="Contents"><ol>{links}</ol></nav>'] if len(titles) > 1 else []
        parts += ["<main>", *self._sections[0][1]]
        for i, (name, (_, blocks)) in enumerate(zip(titles, self._sections[1:], strict=True), start=1):
            parts += [f'<section id="s{i}">\n<h2>{name}</h2>', *blocks, "</section>"]
        body = "\n".join([*parts, "</main>"])
        policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
        return (
            '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
            f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            f"<title>{title}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n"
        )


def _figure(fig: Figure, caption: str, alt: str) -> str:
    _require_text(alt, "alt")
    return _element(png_of_figure(fig), caption, alt)


def _element(png: Png, caption: str, alt: str) -> str:
    return (
        f'<figure>\n<img src="{png.uri}" alt="{escape(alt)}" width="{png.width}" height="{png.height}">\n'
        f"<figcaption>{escape(caption)}</figcaption>\n</figure>"
    )


def _require_text(text: str, name: str) -> None:
    if not text.strip():
        raise ValueError(f"{name}: expected text, got {text!r}.")


def _scalar(value: object) -> object:
    """Tensors of one element and NumPy scalars as plain Python values; everything else as it is."""
    if isinstance(value, np.generic) or (isinstance(value, Tensor) and value.numel() == 1):
        return value.item()
    return value


def _kind(values: Sequence[object]) -> str:
    """The class of a column's cells, as an attribute."""
    if _are_numbers(values):
        return ' class="number"'
    return ' class="text"' if any(isinstance(value, str) and len(value) > 40 for value in values) else ""


def _are_numbers(values: Sequence[object]) -> bool:
    return all(value is None or (isinstance(value, Real) and not isinstance(value, bool)) for value in values)


def _cell(value: object, column: str, how: Format | None) -> str:
    if value is None:
        return "–"
    if callable(how):
        return how(value)
    if how is None:
        how = ".4g" if isinstance(value, float) else ""
    try:
        return format(value, how)
    except (TypeError, ValueError) as error:
        raise ValueError(f"formats[{column!r}]: {how!r} does not fit the value {value!r}.") from error
