"""Every ```python block of README.md and docs/ runs; the blocks of one page share their names."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^(?P<indent> *)```python[^\n]*\n(?P<code>.*?)^(?P=indent)```", re.DOTALL | re.MULTILINE)
SKIPPED = "# not run"
NEEDED = {
    "export.md": ("onnxruntime", "onnxscript"),
    "lora.md": ("transformers", "peft"),
    "serve.md": ("fastapi", "onnxruntime", "onnxscript"),
}
"""Optional packages that a page's code needs."""


def blocks(page: str) -> list[tuple[int, str]]:
    """Line number of the first line and code of each block that is to be run."""
    found = []
    for match in BLOCK.finditer(page):
        code = re.sub(f"^{match['indent']}", "", match["code"], flags=re.MULTILINE)
        if not code.startswith(SKIPPED):
            found.append((page.count("\n", 0, match.start("code")) + 1, code))
    return found


RUNNABLE = [page for page in PAGES if blocks(page.read_text(encoding="utf-8"))]


@pytest.mark.parametrize("page", RUNNABLE, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_the_code_of_a_page_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for package in NEEDED.get(page.name, ()):
        pytest.importorskip(package, reason=package)
    monkeypatch.chdir(tmp_path)  # examples may save files
    namespace: dict[str, Any] = {"__name__": page.stem}
    try:
        for line, code in blocks(page.read_text(encoding="utf-8")):
            # Blank lines before the code make a traceback name the line of the page.
            exec(compile("\n" * (line - 1) + code, str(page), "exec"), namespace)
    finally:
        plt.close("all")


def test_the_readme_has_code_that_runs() -> None:
    assert ROOT / "README.md" in RUNNABLE


def test_blocks_are_found_with_their_lines() -> None:
    page = "\n".join(
        [
            "# Title",
            "```python",
            "a = 1",
            "```",
            "```bash",
            "ls",
            "```",
            "```python",
            "# not run: downloads",
            "b = 2",
            "```",
            "* in a list",
            "",
            "  ```python",
            "  if a:",
            "      c = 3",
            "  ```",
        ]
    )
    assert blocks(page) == [(3, "a = 1\n"), (15, "if a:\n    c = 3\n")]
