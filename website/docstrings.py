"""A griffe extension: docstrings of reStructuredText become Markdown with links between pages of the API.

Roles (``:class:`~pyrobnn.guides.MAP```) become links where the target has a page, else plain code; ``.. math::`` and
``:math:`` become formulas between dollar signs; literal blocks become blocks of code. Names that are exported beside a
file of the same name are made to lead to the function.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import griffe

from website.public_names import PublicNames

__all__ = ["MarkdownDocstrings", "markdown", "resolver"]

ROLE = re.compile(r":(?P<role>[a-z]+):`(?P<target>[^`]*)`")
# A reference to a file of the library that has no page.
ASIDE = re.compile(r"\s+\(:mod:`~?(?P<target>pyrobnn[^`]*)`\)")
DIRECTIVE = re.compile(r"^(?P<indent> *)\.\. (?P<kind>math|code-block)::(?P<rest>.*)$")
LITERAL = re.compile(r"^(?P<indent> *)(?P<text>.*?)::$")

Resolve = Callable[[str], str | None]


class MarkdownDocstrings(griffe.Extension):
    """Rewrites every docstring of the package after it was loaded."""

    def on_package(self, *, pkg: Any, loader: Any, **kwargs: Any) -> None:
        """Called by griffe with the loaded package."""
        if pkg.path != "pyrobnn":
            return
        loader.resolve_aliases(implicit=True, external=False)
        names = PublicNames(pkg)
        for page in names.modules.values():
            for path, found in page.names.items():
                name = path.rpartition(".")[2]
                member = page.module.members.get(name)
                leads_elsewhere = member is not None and member.is_alias and member.target_path != found.path
                if leads_elsewhere or (member is not None and not member.is_alias and member.is_module):
                    page.module.members[name] = griffe.Alias(name, target=found, parent=page.module)
        for item in _objects(pkg, set()):
            if item.docstring is not None:
                item.docstring.value = markdown(item.docstring.value, resolver(item, names))


def _objects(item: Any, seen: set[str]) -> Iterator[Any]:
    if item.is_alias or item.path in seen:
        return
    seen.add(item.path)
    yield item
    for member in list(item.members.values()):
        yield from _objects(member, seen)


def resolver(item: Any, names: PublicNames) -> Resolve:
    """The anchor of a role's target, seen from the docstring of ``item``."""
    package = names.package.path
    known = set(names.public.values())

    def resolve(target: str) -> str | None:
        first = target.partition(".")[0]
        if first == package:
            if target in known or target in names.modules:
                return target
            owner, _, member = target.rpartition(".")
            return names.member(owner, member) if owner in known else names.path_of(target)
        scope = item
        while scope is not None:
            if first in scope.members and not scope.is_function:
                return names.path_of(f"{scope.path}.{target}") or _imported(scope, first, target, names)
            scope = scope.parent
        return None

    return resolve


def _imported(scope: Any, first: str, target: str, names: PublicNames) -> str | None:
    origin = getattr(scope, "imports", {}).get(first)
    return None if origin is None else names.path_of(origin + target[len(first) :])


def markdown(text: str, resolve: Resolve) -> str:
    """A docstring as Markdown.

    Args:
        text: The docstring.
        resolve: The anchor of a role's target, or None if it has no page.
    """
    lines, result, index = text.split("\n"), list[str](), 0
    while index < len(lines):
        line = lines[index]
        if (directive := DIRECTIVE.match(line)) is not None:
            block, index = _block(lines, index + 1, len(directive["indent"]))
            result += _directive(directive, block)
        elif (literal := LITERAL.match(line)) is not None and _is_followed_by_block(lines, index, literal):
            block, index = _block(lines, index + 1, len(literal["indent"]))
            indent = literal["indent"]
            result += [f"{indent}{literal['text'].rstrip()}:", ""] if literal["text"] else []
            result += _fenced(indent, block)
        else:
            result.append(line)
            index += 1
    text = ASIDE.sub(lambda match: match[0] if resolve(match["target"]) else "", "\n".join(result))
    return ROLE.sub(lambda match: _role(match, resolve), text)


def _is_followed_by_block(lines: list[str], index: int, literal: re.Match[str]) -> bool:
    following = next((line for line in lines[index + 1 :] if line.strip()), "")
    return len(following) - len(following.lstrip()) > len(literal["indent"])


def _block(lines: list[str], start: int, indent: int) -> tuple[list[str], int]:
    """The lines from ``start`` on that are indented deeper, without their indentation."""
    end = start
    while end < len(lines) and (not lines[end].strip() or len(lines[end]) - len(lines[end].lstrip()) > indent):
        end += 1
    block = lines[start:end]
    while block and not block[-1].strip():
        block.pop()
        end -= 1
    while block and not block[0].strip():
        block.pop(0)
    margin = min((len(line) - len(line.lstrip()) for line in block if line.strip()), default=0)
    return [line[margin:] for line in block], end


def _directive(directive: re.Match[str], block: list[str]) -> list[str]:
    indent = directive["indent"]
    if directive["kind"] == "code-block":
        return _fenced(indent, block)
    formula = " ".join([directive["rest"].strip(), *(line.strip() for line in block)]).strip()
    if r"\\" in formula and r"\begin" not in formula:
        formula = rf"\begin{{aligned}} {formula} \end{{aligned}}"
    return [indent + "$$", indent + formula, indent + "$$"]


def _fenced(indent: str, block: list[str]) -> list[str]:
    return [f"{indent}```python", *(f"{indent}{line}".rstrip() for line in block), f"{indent}```"]


def _role(match: re.Match[str], resolve: Resolve) -> str:
    if match["role"] == "math":
        return f"${' '.join(match['target'].split())}$"
    target = match["target"].strip()
    shown = target.removeprefix("~").rpartition(".")[2] if target.startswith("~") else target
    target = target.removeprefix("~")
    anchor = resolve(target)
    if anchor is None:
        return f"`{shown.rpartition('.')[2] if shown.startswith('pyrobnn.') else shown}`"
    short = shown if match["role"] == "mod" or not shown.startswith("pyrobnn.") else shown.removeprefix("pyrobnn.")
    return f"[`{short}`][{anchor}]"
