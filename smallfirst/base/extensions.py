"""Find task kinds, candidates, engines and policies by name: built-in ones and those of installed packages.

A registry maps names to `"module:attribute"` references and loads one when it is first asked for, so listing names
imports nothing. A package adds to a registry in its pyproject.toml:

    [project.entry-points."smallfirst.candidates"]
    my_candidate = "my_package.module:attribute"

A task file names parts and never points at code, so reading one runs nothing that was not installed on purpose.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import sys
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Generic, TypeVar, cast

from smallfirst.base.errors import ConfigError, MissingExtra, as_missing_extra, did_you_mean

T = TypeVar("T")


class Registry(Generic[T]):
    """Parts of one kind by name."""

    def __init__(self, group: str, built_in: Mapping[str, str], *, noun: str) -> None:
        """Create the registry of the entry-point group `group`, for example "smallfirst.candidates".

        `built_in` maps names to "module:attribute"; an installed package cannot replace them. `noun` is what error
        messages call a part, for example "candidate".
        """
        self.group, self.noun = group, noun
        self._built_in = dict(built_in)
        self._loaded: dict[str, T] = {}

    def register(self, name: str, part: T) -> None:
        """Add `part` in this process only, for notebooks and tests. Raise ConfigError if the name is taken."""
        if name in self.names():
            raise ConfigError(f'{self.noun} "{name}" exists already', hint="choose another name")
        self._loaded[name] = part

    def names(self) -> tuple[str, ...]:
        """Return all names: built-in ones in their order, then those of installed packages, then registered ones."""
        return tuple(dict.fromkeys([*self._built_in, *sorted(self._entry_points().names), *self._loaded]))

    def check(self, name: str, *, where: str = "") -> None:
        """Raise ConfigError, starting with `where`, if no part has this name. Load no code."""
        if name not in self.names():
            place = f"{where}: " if where else ""
            raise ConfigError(
                f'{place}unknown {self.noun} "{name}"{did_you_mean(name, list(self.names()))}',
                hint=f"choose one of {', '.join(self.names())}, or install a package that registers it "
                f'under the entry-point group "{self.group}"',
            )

    def get(self, name: str, *, where: str = "") -> T:
        """Return the part of this name, loading it once. Raise ConfigError if it is unknown or cannot be loaded."""
        self.check(name, where=where)
        if name not in self._loaded:
            try:
                self._loaded[name] = self._load(name)
            except Exception as error:  # code of other packages may fail in any way
                missing = as_missing_extra(error) if isinstance(error, ModuleNotFoundError) else error
                if isinstance(missing, MissingExtra):
                    raise missing from error
                raise ConfigError(f'{self.noun} "{name}" cannot be loaded: {type(error).__name__}: {error}') from error
        return self._loaded[name]

    def __iter__(self) -> Iterator[tuple[str, T]]:
        """Yield every name with its part; loads them all."""
        return ((name, self.get(name)) for name in self.names())

    def _load(self, name: str) -> T:
        if name in self._built_in:
            module, _, attribute = self._built_in[name].partition(":")
            return cast(T, getattr(importlib.import_module(module), attribute))
        found = {point.value: point for point in self._entry_points() if point.name == name}
        if len(found) > 1:
            raise ConfigError(f"two packages register it: {' and '.join(sorted(found))}; uninstall one of them")
        return cast(T, next(iter(found.values())).load())

    def _entry_points(self) -> importlib.metadata.EntryPoints:
        return _installed(self.group, tuple(sys.path))


@lru_cache(maxsize=64)
def _installed(group: str, path: tuple[str, ...]) -> importlib.metadata.EntryPoints:
    """Read the entry points of `group` on this path once: this opens the metadata of every package."""
    return importlib.metadata.entry_points(group=group)
