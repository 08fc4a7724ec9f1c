"""Text without a download: docstrings of installed packages, to be told apart by the library they are from.

The sources are parsed, not imported. The first sentences of each docstring become a row of word numbers; names of the
libraries are unknown words. Files, not docstrings, are split into parts, because those of one file are alike.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import re
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

__all__ = ["LIBRARIES", "MASK", "NUM_WORDS", "PADDING", "UNKNOWN_LIBRARIES", "Corpus", "inputs"]

LIBRARIES = ("numpy", "scipy", "sklearn", "matplotlib", "torch", "pandas")
"""The classes."""
UNKNOWN_LIBRARIES = ("sympy", "networkx")
"""Never trained on: the shifted text."""
PADDING, UNKNOWN, FIRST, MASK, LENGTH, NUM_WORDS = 0, 1, 2, 3, 32, 3000
SHORTEST = 8
_NAMES = re.compile(r"numpy|scipy|sklearn|scikit|matplotlib|torch|pandas|sympy|networkx|\b(np|plt|pd|nx|mpl)\b")
_WORD = re.compile(r"[a-z_]+|[0-9]+|[^\sa-z0-9]")


@dataclass
class Corpus:
    """Rows of words ``[N, 32]``, padded with zeros, of each part.

    Attributes:
        parts: ``"train"``, ``"validation"``, ``"test"``, each with labels, and ``"unknown"``, with none.
    """

    parts: dict[str, tuple[Tensor, Tensor]]

    @classmethod
    def read(cls) -> Corpus:
        """Reads the installed packages: the same rows as long as their versions are the same."""
        texts: dict[str, list[tuple[list[str], int]]] = {"train": [], "validation": [], "test": [], "unknown": []}
        for label, library in enumerate((*LIBRARIES, *UNKNOWN_LIBRARIES)):
            for path, words in _docstrings(library):
                known = label < len(LIBRARIES)
                texts[_part(path) if known else "unknown"].append((words, label if known else -1))
        counts = Counter(word for words, _ in texts["train"] for word in words)
        numbers = {word: MASK + 1 + i for i, (word, _) in enumerate(counts.most_common(NUM_WORDS - MASK - 1))}
        parts = {}
        for part, found in texts.items():
            rows = torch.zeros(len(found), LENGTH, dtype=torch.long)
            for row, (words, _) in zip(rows, found, strict=True):
                known_words = [numbers.get(word, UNKNOWN) for word in words[: LENGTH - 1]]
                row[: 1 + len(known_words)] = torch.tensor([FIRST, *known_words])
            parts[part] = rows, torch.tensor([label for _, label in found])
        return cls(parts)

    def choose(self, part: str, count: int, seed: int) -> tuple[Tensor, Tensor]:
        """``count`` rows of a part, as many of each class, chosen by ``seed``."""
        rows, labels = self.parts[part]
        generator = torch.Generator().manual_seed(seed)
        classes = labels.unique()
        chosen = [
            own[torch.randperm(len(own), generator=generator)[: count // len(classes)]]
            for own in ((labels == label).nonzero().squeeze(-1) for label in classes)
        ]
        index = torch.cat(chosen)
        return rows[index], labels[index]


def inputs(rows: Tensor) -> dict[str, Tensor]:
    """The network's arguments."""
    return {"input_ids": rows, "attention_mask": (rows != PADDING).long()}


def _docstrings(library: str) -> Iterator[tuple[str, list[str]]]:
    """File and words of each docstring of functions and classes, each text once."""
    spec = importlib.util.find_spec(library)
    if spec is None or spec.origin is None:
        raise ImportError(f"docstrings: the package {library} is not installed.")
    root, seen = Path(spec.origin).parent, set()
    for path in sorted(root.rglob("*.py")):
        name = path.relative_to(root).as_posix()
        if "test" in name:
            continue
        with warnings.catch_warnings():  # of escapes in strings
            warnings.simplefilter("ignore")
            tree = ast.parse(path.read_text(encoding="utf-8", errors="ignore"))
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and (text := ast.get_docstring(node)):
                words = _WORD.findall(_NAMES.sub(" # ", text[:600].lower()))[: LENGTH - 1]
                if len(words) >= SHORTEST and (key := " ".join(words)) not in seen:
                    seen.add(key)
                    yield f"{library}/{name}", words


def _part(path: str) -> str:
    place = int(hashlib.sha256(path.encode()).hexdigest(), 16) % 10
    return "train" if place < 6 else "validation" if place < 8 else "test"
