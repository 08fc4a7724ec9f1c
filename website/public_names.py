"""Where each public name lives: the path that a user imports it from, for the one that defines it.

Read from the source by griffe, without importing it, so that optional extras need not be there. A module is public if
it is in ``__all__`` of a public one, or lies directly in the package and has an ``__all__`` of its own. A name belongs
to the first public module that exports it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import griffe

__all__ = ["PublicModule", "PublicNames"]

PACKAGE = "pyrobnn"
COMMANDS = {"pyrobnn.cli", "pyrobnn.demo"}  # programs, not names to import
# Contracts and results that no package exports: they are imported from where they are defined.
FURTHER: dict[str, list[str]] = {
    "pyrobnn.model": [
        "pyrobnn.model.layout.Layout",
        "pyrobnn.model.draws.Draws",
        "pyrobnn.model.facts.Facts",
        "pyrobnn.model.divergence.Divergence",
        "pyrobnn.model.divergence.PriorTerm",
    ],
    "pyrobnn.layers": [
        "pyrobnn.layers.sde.SDESolution",
        "pyrobnn.layers.sde.brownian_increments",
        "pyrobnn.layers.sde.solve_sde",
        "pyrobnn.layers.unet.UNet",
    ],
    "pyrobnn.reporting": ["pyrobnn.reporting.report.Report"],
}


@dataclass
class PublicModule:
    """A page of the API.

    Attributes:
        path: What a user imports.
        module: Griffe's object.
        names: Its own classes and functions: public path to object.
        elsewhere: Names that it exports, too, but that are documented under another path: name to public path.
    """

    path: str
    module: Any
    names: dict[str, Any] = field(default_factory=dict)
    elsewhere: dict[str, str] = field(default_factory=dict)


class PublicNames:
    """The public modules of a package that griffe has loaded, with resolved aliases.

    Attributes:
        package: Griffe's object.
        modules: By path, in the order of the site.
        public: Public path by the path of the definition.
    """

    def __init__(self, package: Any) -> None:
        self.modules: dict[str, PublicModule] = {}
        self.public: dict[str, str] = {}
        self.package = package
        self._seen: set[str] = set()
        self._walk(package.path, package)
        for name, member in package.members.items():
            if not member.is_alias and member.is_module and member.exports and member.path not in COMMANDS:
                self._walk(f"{package.path}.{name}", member)
        for path, names in FURTHER.items():
            if package.path == PACKAGE:
                page = self.modules.setdefault(path, PublicModule(path, package[path.removeprefix(f"{PACKAGE}.")]))
                for name in names:
                    self._add(page, name, _target(package[name.removeprefix(f"{PACKAGE}.")]))
        self.modules = {path: page for path, page in self.modules.items() if page.names}

    def _walk(self, path: str, module: Any) -> None:
        if module.path in self._seen:
            return
        self._seen.add(module.path)
        page = self.modules[path] = PublicModule(path, module)
        inner = []
        for name in sorted(str(name) for name in module.exports or []):
            found = _exported(self.package, module, name)
            if found is None:
                continue
            if found.is_module:
                inner.append((f"{path}.{name}", found))
            else:
                self._add(page, f"{path}.{name}", found)
        for name, found in inner:
            self._walk(name, found)

    def _add(self, page: PublicModule, path: str, found: Any) -> None:
        if not found.has_docstring or not (found.is_class or found.is_function):
            return
        if found.path in self.public:
            page.elsewhere[path.rpartition(".")[2]] = self.public[found.path]
            return
        self.public[found.path] = path
        page.names[path] = found

    def path_of(self, definition: str) -> str | None:
        """The public path of a definition or of a member of one, by which its page has an anchor; None if none has.

        A member without documentation has no anchor, so its class is taken.
        """
        if definition in self.public:
            return self.public[definition]
        owner, _, member = definition.rpartition(".")
        return self.member(self.public[owner], member) if owner in self.public else None

    def member(self, owner: str, name: str) -> str:
        """The anchor of a member of a class that has a page."""
        found = next(page.names[owner] for page in self.modules.values() if owner in page.names)
        is_shown = found.is_class and name in found.members and found.members[name].has_docstring
        return f"{owner}.{name}" if is_shown else owner

    @classmethod
    def load(cls, root: str = ".") -> PublicNames:
        """Of the package in a folder."""
        return cls(griffe.load(PACKAGE, search_paths=[root], resolve_aliases=True, resolve_external=False))


def _target(member: Any) -> Any | None:
    """The definition behind an import; None if it is in another library."""
    if not member.is_alias:
        return member
    try:
        return member.final_target
    except (griffe.AliasResolutionError, griffe.CyclicAliasError):
        return None


def _exported(package: Any, module: Any, name: str) -> Any | None:
    """What a name of ``__all__`` is.

    A function and the file that defines it may have one name. Griffe then takes the file, so the import decides.
    """
    origin = module.imports.get(name)
    if origin is not None and origin.startswith(f"{package.path}."):
        parent, _, last = origin.rpartition(".")
        source = package if parent == package.path else package[parent.removeprefix(f"{package.path}.")]
        if source.is_module and source.path != module.path:
            return _exported(package, source, last)
    member = module.members.get(name)
    return None if member is None else _target(member)
