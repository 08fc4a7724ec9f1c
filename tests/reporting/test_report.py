"""The page is parsed as a browser would: structure, escaped text, embedded images, nothing from outside."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import matplotlib.image
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure

from pyrobnn.reporting.report import Report

HOSTILE = "<script>alert('1')</script> & \"quoted\" </td>"
VOID = {"meta", "img"}


class Page(HTMLParser):
    """Elements in order of appearance as (tag, attributes, text); refuses tags that do not nest."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None], list[str]]] = []
        self.open: list[int] = []
        self.feed(html)
        self.close()
        assert not self.open, "unclosed elements"

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attributes), []))
        if tag not in VOID:
            self.open.append(len(self.elements) - 1)

    def handle_endtag(self, tag: str) -> None:
        assert self.elements[self.open.pop()][0] == tag

    def handle_data(self, data: str) -> None:
        for index in self.open:
            self.elements[index][2].append(data)

    def text(self, tag: str) -> list[str]:
        return ["".join(parts) for name, _, parts in self.elements if name == tag]

    def attributes(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes, _ in self.elements if name == tag]


@pytest.fixture(autouse=True)
def _agg() -> Iterator[None]:
    plt.switch_backend("Agg")
    yield
    plt.close("all")


def line_figure() -> Figure:
    figure, ax = plt.subplots(figsize=(3, 2), dpi=80)
    ax.plot([0, 1])
    return figure


def parse(report: Report, folder: Path) -> Page:
    return Page(report.write(folder / "report.html").read_bytes().decode("utf-8"))


def full_report() -> Report:
    report = Report("Digits", "20 draws")
    report.section("Calibration", "First.\n\nSecond & last.")
    report.table([{"method": "MAP", "ECE": 0.0412}, {"method": "VI", "ECE": 0.01}], "Test set", {"ECE": ".3f"})
    report.section("Shift")
    report.figure(line_figure(), "Score by angle", alt="It rises.")
    report.preformatted("a  b\nc")
    return report


def test_structure_in_order(tmp_path: Path) -> None:
    page = parse(full_report(), tmp_path)
    assert page.text("title") == page.text("h1") == ["Digits"]
    assert page.text("h2") == ["Calibration", "Shift"]
    assert page.text("p") == ["20 draws", "First.", "Second & last."]
    assert page.text("caption") == ["Test set"]
    assert page.text("th") == ["method", "ECE"]
    assert page.text("td") == ["MAP", "0.041", "VI", "0.010"]
    assert page.text("figcaption") == ["Score by angle"]
    assert page.text("pre") == ["\na  b\nc"]  # a browser drops the first newline
    order = [tag for tag, _, _ in page.elements if tag in {"h1", "section", "h2", "table", "figure", "pre"}]
    assert order == ["h1", "section", "h2", "table", "section", "h2", "figure", "pre"]


def test_contents_link_to_the_sections(tmp_path: Path) -> None:
    page = parse(full_report(), tmp_path)
    assert page.text("a") == ["Calibration", "Shift"]
    targets = [f"#{attributes['id']}" for attributes in page.attributes("section")]
    assert [attributes["href"] for attributes in page.attributes("a")] == targets
    assert len(set(targets)) == 2


def test_nothing_is_loaded_from_outside(tmp_path: Path) -> None:
    page = parse(full_report(), tmp_path)
    tags = {tag for tag, _, _ in page.elements}
    assert not tags & {"script", "link", "iframe", "object", "embed", "base"}
    for _, attributes, _ in page.elements:
        assert (attributes.get("href") or "#").startswith("#")
        if "src" in attributes:
            assert (attributes["src"] or "").startswith("data:image/png;base64,")
        assert not [name for name in attributes if name.startswith("on")]
    (style,) = page.text("style")
    assert "url(" not in style
    assert "@import" not in style
    assert "prefers-color-scheme: dark" in style
    metas = page.attributes("meta")
    assert {"charset": "utf-8"} in metas
    assert any(meta.get("name") == "viewport" for meta in metas)
    assert any((meta.get("content") or "").startswith("default-src 'none'") for meta in metas)


def test_text_from_the_user_is_escaped_everywhere(tmp_path: Path) -> None:
    report = Report(HOSTILE, HOSTILE)
    report.section(HOSTILE, HOSTILE)
    report.table([{HOSTILE: HOSTILE}], HOSTILE, {HOSTILE: lambda value: f"{value}!"})
    report.figure(line_figure(), HOSTILE, HOSTILE)
    report.preformatted(HOSTILE)
    report.section("Second")  # so that there is a table of contents
    page = parse(report, tmp_path)
    assert "script" not in {tag for tag, _, _ in page.elements}
    for tag in ("title", "h1", "h2", "p", "a", "caption", "th", "figcaption"):
        assert page.text(tag)[0] == HOSTILE, tag
    assert page.text("td") == [HOSTILE + "!"]
    assert page.text("pre") == ["\n" + HOSTILE]
    assert page.attributes("img")[0]["alt"] == HOSTILE
    assert page.attributes("div")[0]["aria-label"] == HOSTILE


@settings(max_examples=40, deadline=None)
@given(cells=st.lists(st.text(), min_size=1, max_size=4))
def test_any_text_comes_back_from_a_table(cells: list[str], tmp_path_factory: pytest.TempPathFactory) -> None:
    report = Report("Any text")
    report.table([{"cell": cell} for cell in cells])
    assert parse(report, tmp_path_factory.mktemp("report")).text("td") == cells


def test_figure_is_a_png_at_twice_the_size_it_is_shown_and_closed(tmp_path: Path) -> None:
    figure = line_figure()
    report = Report("Figure")
    report.figure(figure, "A line", alt="A line that rises.")
    assert plt.get_fignums() == []
    (image,) = parse(report, tmp_path).attributes("img")
    kind, data = (image["src"] or "").split(",")
    assert kind == "data:image/png;base64"
    png = base64.b64decode(data, validate=True)
    assert png.startswith(b"\x89PNG\r\n\x1a\n")
    assert b"Software" not in png  # the version of matplotlib would change the bytes
    height, width, _ = matplotlib.image.imread(io.BytesIO(png), format="png").shape
    assert (int(image["width"] or 0), int(image["height"] or 0)) == (width // 2, height // 2)
    # 3 x 2 inches at 2 · 80 dpi, cropped to what is drawn.
    assert 400 < width <= 480
    assert 260 < height <= 320


def test_figures_and_images_side_by_side(tmp_path: Path) -> None:
    report = Report("Grid")
    report.figures([(line_figure(), "one", "first"), (line_figure(), "two", "second")])
    pixels = torch.tensor([[[0.0, 1.0, 0.5]], [[1.0, 1.0, 0.0]]])
    report.images(pixels, ["a\nb", "<c>"], "row of three")
    page = parse(report, tmp_path)
    assert [attributes.get("class") for attributes in page.attributes("div")] == ["figures", "images"]
    assert page.text("figcaption") == ["one", "two", "a\nb", "<c>"]
    images = page.attributes("img")
    assert [image["alt"] for image in images] == ["first", "second", "row of three: a b", "row of three: <c>"]
    assert (images[2]["width"], images[2]["height"]) == ("3", "1")  # pixel by pixel
    png = base64.b64decode((images[2]["src"] or "").split(",")[1])
    gray = matplotlib.image.imread(io.BytesIO(png), format="png")[0, :, 0]
    np.testing.assert_allclose(gray, [0.0, 1.0, 0.5], atol=1 / 255)


def test_color_images_keep_their_channels(tmp_path: Path) -> None:
    report = Report("Color")
    report.images(torch.tensor([[[[1.0]], [[0.0]], [[0.2]]]]), ["red"], "one pixel")
    (image,) = parse(report, tmp_path).attributes("img")
    png = base64.b64decode((image["src"] or "").split(",")[1])
    rgb = matplotlib.image.imread(io.BytesIO(png), format="png")[0, 0, :3]
    np.testing.assert_allclose(rgb, [1.0, 0.0, 0.2], atol=1 / 255)


def test_grids_refuse() -> None:
    with pytest.raises(ValueError, match="panels: expected at least one figure"):
        Report("Grid").figures([])
    with pytest.raises(ValueError, match="captions: expected one for each of 2 images, got 1"):
        Report("Grid").images(torch.rand(2, 3, 3), ["a"], "two")
    with pytest.raises(ValueError, match="images: expected"):
        Report("Grid").images(torch.rand(2, 3), ["a", "b"], "two")
    with pytest.raises(ValueError, match="alt: expected text"):
        Report("Grid").images(torch.rand(1, 3, 3), ["a"], " ")


def test_paragraphs_between_other_blocks(tmp_path: Path) -> None:
    report = Report("Text")
    report.preformatted("x")
    report.paragraph("one & two\n\nthree")
    assert parse(report, tmp_path).text("p") == ["one & two", "three"]


def test_same_content_gives_the_same_bytes(tmp_path: Path) -> None:
    first = full_report().write(tmp_path / "first.html").read_bytes()
    assert full_report().write(tmp_path / "second.html").read_bytes() == first


def test_table_values_alignment_and_gaps(tmp_path: Path) -> None:
    report = Report("Table")
    report.table(
        [
            {"name": "a", "float": 0.123456, "count": 12345, "tensor": torch.tensor(2.0), "flag": True},
            {"name": 1, "float": None, "count": np.int64(7), "tensor": torch.tensor([0.5]), "late": "x"},
        ]
    )
    page = parse(report, tmp_path)
    assert page.text("th") == ["name", "float", "count", "tensor", "flag", "late"]
    assert page.text("td") == ["a", "0.1235", "12345", "2", "True", "–", "1", "–", "7", "0.5", "–", "x"]
    numeric = [attributes.get("class") == "number" for attributes in page.attributes("th")]
    assert numeric == [False, True, True, True, False, False]
    assert [attributes.get("class") == "number" for attributes in page.attributes("td")] == numeric * 2


def test_rows_of_wide_tables_are_cards_on_a_phone(tmp_path: Path) -> None:
    report = Report("Tables")
    report.table([{"method": "MAP", "ECE": 0.1}])
    report.table([dict.fromkeys("abcde", 1.0)])
    report.table([{"check": "a", "result": "pass", "reason": "x" * 50}])
    page = parse(report, tmp_path)
    assert [attributes.get("class") for attributes in page.attributes("table")] == [None, "cards", "cards"]
    labels = [attributes["data-label"] for attributes in page.attributes("td")]
    assert labels == ["method", "ECE", *"abcde", "check", "result", "reason"]


@pytest.mark.parametrize(
    ("rows", "formats", "message"),
    [
        ([], None, "rows: expected at least one row"),
        ([{}], None, "rows"),
        ([{"a": 1}], {"b": ".3f"}, r"formats: expected keys among the columns \['a'\], got \['b'\]"),
        ([{"a": "text"}], {"a": ".3f"}, r"formats\['a'\]: '.3f' does not fit the value 'text'"),
    ],
)
def test_table_refuses(rows: list[dict[str, object]], formats: dict[str, str] | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Report("Table").table(rows, formats=formats)


def test_what_comes_before_the_first_section_stays_on_top(tmp_path: Path) -> None:
    report = Report("Top")
    report.preformatted("first")
    report.section("Only")
    page = parse(report, tmp_path)
    tags = [tag for tag, _, _ in page.elements]
    assert tags.index("pre") < tags.index("section")
    assert "nav" not in tags  # one section needs no table of contents


def test_blank_titles_and_alternative_texts_are_refused() -> None:
    with pytest.raises(ValueError, match="title"):
        Report(" ")
    with pytest.raises(ValueError, match="title"):
        Report("Digits").section("")
    with pytest.raises(ValueError, match="alt"):
        Report("Digits").figure(line_figure(), "A line", alt="")


def test_axes_in_place_of_a_figure_are_refused() -> None:
    with pytest.raises(TypeError, match="fig: expected a matplotlib Figure, got Axes"):
        Report("Digits").figure(line_figure().axes[0], "A line", alt="A line.")


def test_an_empty_path_and_a_directory_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^path: expected the path of a file, got ''"):
        Report("First").write("")
    with pytest.raises(IsADirectoryError, match="it is a directory, expected a file"):
        Report("First").write(tmp_path)


def test_write_makes_the_folder_and_replaces_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "report.html"
    assert Report("First").write(str(path)) == path
    Report("Second").write(path)
    assert Page(path.read_text(encoding="utf-8")).text("h1") == ["Second"]
    assert list(path.parent.iterdir()) == [path]


def test_write_that_fails_keeps_the_old_page_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = Report("Old").write(tmp_path / "report.html")
    before = path.read_bytes()

    def full_disk(self: Path, text: str, **keywords: object) -> int:
        self.write_bytes(text.encode()[:10])
        raise OSError("no space left on device")

    monkeypatch.setattr(Path, "write_text", full_disk)
    with pytest.raises(OSError, match="no space"):
        Report("New").write(path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
