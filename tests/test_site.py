"""What generates the site, without building it: docstrings, notebooks, tables, formulas, navigation, links."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from website import navigation, notebooks

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
LINK = re.compile(r"\]\((?!https?:|#)([^)#\s]+)(?:#([^)\s]+))?\)")
FENCE = re.compile(r"^ *```.*?^ *```", re.DOTALL | re.MULTILINE)
GENERATED = ("api/", "tutorials/", "contributing.md", "changelog.md")
LONGEST_LINE = 120


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(DOCS).as_posix())
def test_links_lead_to_files(page: Path) -> None:
    for target, anchor in LINK.findall(FENCE.sub("", page.read_text("utf-8"))):
        path = (page.parent / target).resolve()
        if path.is_relative_to(DOCS) and path.relative_to(DOCS).as_posix().startswith(GENERATED):
            continue
        assert path.is_file(), f"{page.name}: {target}"
        assert path.is_relative_to(DOCS), f"{page.name}: {target} is not on the site"
        if anchor and path.suffix == ".md":
            assert anchor in anchors(path), f"{page.name}: {target}#{anchor}"


def anchors(page: Path) -> set[str]:
    """Anchors of the headings, as Markdown makes them."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", page.read_text("utf-8")), re.MULTILINE)
    return {re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", heading).strip().lower()) for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(DOCS).as_posix())
def test_prose_is_wrapped(page: Path) -> None:
    lines = enumerate(page.read_text("utf-8").split("\n"), 1)
    assert [number for number, line in lines if len(line) > LONGEST_LINE and "|" not in line[:3]] == []


def test_the_index_of_results_has_every_section() -> None:
    text = (DOCS / "results.md").read_text("utf-8")
    index = text[text.index("## Index") : text.index("## How settings are chosen")]
    linked = set(re.findall(r"\]\(#([^)]+)\)", index)) | {"results", "index", "how-settings-are-chosen"}
    assert anchors(DOCS / "results.md") <= linked, "add the section to the index at the top"


def test_the_api_is_generated() -> None:
    text = (DOCS / "api.md").read_text("utf-8")
    assert ":::" not in text, "docs/api.md lists nothing: a name in the __all__ of a public package has its page"


def test_only_pages_and_their_parts_are_published() -> None:
    assert {path.suffix for path in DOCS.rglob("*") if path.is_file()} <= {".md", ".png", ".css", ".js"}


def test_navigation_takes_pages_that_are_not_named() -> None:
    entries = ["index.md", {"Tasks": ["tasks/b.md", "tasks/*"]}, {"More": ["*"]}]
    pages = ["index.md", "tasks/a.md", "tasks/b.md", "tasks/c.md", "new.md"]
    assert navigation.complete(entries, pages) == [
        "index.md",
        {"Tasks": ["tasks/b.md", "tasks/a.md", "tasks/c.md"]},
        {"More": ["new.md"]},
    ]


def test_navigation_refuses_a_forgotten_page() -> None:
    with pytest.raises(ValueError, match=r"folder/page\.md"):
        navigation.complete([{"More": ["*"]}], ["folder/page.md"])


def test_a_notebook_becomes_a_page() -> None:
    tutorial = notebooks.read(ROOT / "tutorials" / "04_choosing_a_posterior.ipynb")
    assert tutorial.title == "Choosing a posterior"
    assert tutorial.text.startswith("# Choosing a posterior\n")
    assert set(re.findall(r"\]\(04_choosing_a_posterior_files/([^)]+)\)", tutorial.text)) == set(tutorial.figures)
    assert tutorial.figures and all(figure.startswith(b"\x89PNG") for figure in tutorial.figures.values())
    assert "[`01_quickstart`](01_quickstart.md)" in tutorial.text
    assert "output }" in tutorial.text
    assert "<style" not in tutorial.text


# ------------------------------------------------------------------------------ what needs the extra "docs"


def test_docstrings_become_markdown() -> None:
    pytest.importorskip("griffe", reason="extra docs")
    from website.docstrings import markdown

    text = "\n".join(
        [
            "See :class:`~pyrobnn.guides.MAP`, :func:`other` and :math:`x_i`.",
            "",
            ".. math::  a \\\\",
            "           b",
            "",
            "Args:",
            "    x: As in ::",
            "",
            "            f(x)",
            "",
            "    y: More.",
        ]
    )
    aside = markdown("Rows (:mod:`pyrobnn.guides.rows`) of :mod:`pyrobnn.guides.rows`.", lambda target: None)
    assert aside == "Rows of `rows`."  # files of the library have no page
    found = markdown(text, {"pyrobnn.guides.MAP": "pyrobnn.guides.MAP"}.get)
    assert found.startswith("See [`MAP`][pyrobnn.guides.MAP], `other` and $x_i$.")
    assert "$$\n\\begin{aligned} a \\\\ b \\end{aligned}\n$$" in found
    assert "    x: As in:\n\n    ```python\n    f(x)\n    ```\n\n    y: More." in found


def test_public_names_are_found_where_users_import_them() -> None:
    pytest.importorskip("griffe", reason="extra docs")
    import pyrobnn as pb
    from website.public_names import PublicNames

    names = PublicNames.load(str(ROOT))
    assert names.public["pyrobnn.guides.mean_field.MeanField"] == "pyrobnn.guides.MeanField"
    assert names.public["pyrobnn.prediction.predict.predict"] == "pyrobnn.predict"  # beside a file of its name
    assert names.path_of("pyrobnn.guides.base.Guide.rsample") == "pyrobnn.guides.Guide.rsample"
    assert names.path_of("pyrobnn.core.arguments.check_int") is None
    exported = {name for name in pb.__all__ if callable(getattr(pb, name))}
    assert {f"pyrobnn.{name}" for name in exported} == set(names.modules["pyrobnn"].names)


def test_cells_know_their_column() -> None:
    markdown = pytest.importorskip("markdown", reason="extra docs")
    page = markdown.markdown("| a | b |\n|---|---|\n| 1 | `2` |", extensions=["tables", "website.cards"])
    assert '<table data-columns="2">' in page
    assert '<td data-label="b"><code>2</code></td>' in page
    page = markdown.markdown("| a | b |\n|---|---|\n| **x** | 1 |\n|  | 2 |", extensions=["tables", "website.cards"])
    assert '<td data-above="x" data-label="a"></td>' in page or '<td data-label="a" data-above="x"></td>' in page


def test_formulas_become_mathml() -> None:
    pytest.importorskip("latex2mathml", reason="extra docs")
    from website.formulas import with_formulas

    page = with_formulas(r'<p><span class="arithmatex">\(x &lt; \tfrac12\)</span></p>')
    assert "<math" in page and "<mfrac>" in page and "&#x0003C;" in page  # <
    assert "arithmatex" not in page
