"""Hooks of mkdocs: pages that are generated from the package, the notebooks and files beside ``docs/``."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # the command mkdocs does not look here, python -m mkdocs does

from website import api_pages, navigation, notebooks  # noqa: E402
from website.formulas import with_formulas  # noqa: E402
from website.public_names import PublicNames  # noqa: E402

BESIDE = {"contributing.md": "CONTRIBUTING.md", "changelog.md": "CHANGELOG.md"}
TITLE = re.compile(r' title="[^"]*"')
PATH = re.compile(r"pyrobnn(?:\.\w+)+")
DOCS_LINK = re.compile(r"\]\(docs/")


class _Generated:
    """What one build generates."""

    names: PublicNames
    tutorials: list[notebooks.Tutorial]
    pages: dict[str, str]


_generated = _Generated()


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Reads what pages are made of, and completes the navigation."""
    _generated.names = PublicNames.load(str(ROOT))
    _generated.tutorials = [notebooks.read(path) for path in sorted((ROOT / "tutorials").glob("*.ipynb"))]
    _generated.pages = {
        **api_pages.pages(_generated.names),
        **{f"tutorials/{tutorial.name}.md": tutorial.text for tutorial in _generated.tutorials},
        **{page: DOCS_LINK.sub("](", (ROOT / file).read_text("utf-8")) for page, file in BESIDE.items()},
    }
    docs = Path(config.docs_dir)
    written = sorted(path.relative_to(docs).as_posix() for path in docs.rglob("*.md"))
    config.nav = navigation.complete(list(config.nav or []), [*written, *_generated.pages])
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the generated pages and the figures of the notebooks."""
    for address, text in _generated.pages.items():
        files.append(File.generated(config, address, content=text))
    for tutorial in _generated.tutorials:
        for name, figure in tutorial.figures.items():
            files.append(File.generated(config, f"tutorials/{tutorial.name}_files/{name}", content=figure))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Appends the list of modules to docs/api.md, and that of notebooks to docs/tutorials.md."""
    if page.file.src_uri == "api.md":
        return f"{markdown}\n\n{api_pages.index(_generated.names)}"
    if page.file.src_uri == "tutorials.md":
        rows = [f"| [{t.title}](tutorials/{t.name}.md) | {t.summary} |" for t in _generated.tutorials]
        return "\n".join([markdown, "", "| notebook | what it shows |", "|---|---|", *rows])
    return markdown


def on_post_page(output: str, page: Page, config: MkDocsConfig) -> str:
    """Tooltips of annotations name what a user imports, not the file that defines it."""
    if not page.file.src_uri.startswith("api/"):
        return output
    return TITLE.sub(lambda title: PATH.sub(_public_path, title[0]), output)


def _public_path(path: re.Match[str]) -> str:
    return _generated.names.path_of(path[0]) or path[0].rpartition(".")[2]


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Draws formulas."""
    return with_formulas(html)
