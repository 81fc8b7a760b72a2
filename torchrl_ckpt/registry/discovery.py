"""Finds every installed plugin by its entry point, and imports none of them.

Only this module uses the `entrypoints` package, and it works around two of its limits: its scan
raises if any installed package has a malformed `entry_points.txt`, and of two copies of one
distribution it silently takes the first on the path.
"""

from __future__ import annotations

import configparser
import email
import importlib.metadata
import logging
import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from operator import attrgetter
from pathlib import Path
from typing import Any

import entrypoints

from torchrl_ckpt.plugin_api.plugin import KINDS, Kind

_log = logging.getLogger(__name__)
_GROUPS: dict[str, Kind] = {f"torchrl_ckpt.{kind}": kind for kind in KINDS}


@dataclass(frozen=True)
class FoundPlugin:
    """A plugin as its distribution announces it; it has not been imported."""

    kind: Kind
    name: str
    entry_point: str
    """`module:attribute`."""
    distribution: str
    """The name as package indexes normalise it: `acme-plugins`."""
    version: str
    metadata: Path
    """The directory of metadata that announces it."""

    def __str__(self) -> str:
        return f"{self.distribution} {self.version} ({self.entry_point})"

    @property
    def qualified_name(self) -> str:
        """The name that stays unambiguous if another distribution offers the same name."""
        return f"{self.distribution}:{self.name}"

    def import_object(self) -> Any:
        """Import the entry point and return its object. Raises whatever the import raises."""
        return entrypoints.EntryPoint.from_string(self.entry_point, self.name).load()


@dataclass(frozen=True)
class StalePlugin:
    """A plugin that is announced only by a second copy of its distribution's metadata.

    A build leaves an `egg-info` in the source tree, and Python finds it there. The installed
    metadata decide; such a leftover is reported and never loaded.
    """

    plugin: FoundPlugin
    installed: Path
    """The metadata of the copy that is used."""

    def __str__(self) -> str:
        return (
            f"{self.plugin.metadata} says that {self.plugin.kind} `{self.plugin.name}` is "
            f"{self.plugin.entry_point}, but the copy of {self.plugin.distribution} that is used, "
            f"{self.installed}, does not. If the latter is out of date, install "
            f"{self.plugin.distribution} again; if not, delete the former."
        )


@dataclass(frozen=True)
class UnreadableMetadata:
    """A malformed `entry_points.txt`, of a plugin's distribution or of any other."""

    file: Path
    reason: str

    def __str__(self) -> str:
        return f"{self.file} is malformed, so plugins may be missing: {self.reason}"


@dataclass(frozen=True)
class Installed:
    """Everything found in this environment, sorted by kind, name and distribution."""

    plugins: tuple[FoundPlugin, ...]
    stale: tuple[StalePlugin, ...]
    unreadable: tuple[UnreadableMetadata, ...]

    def rivals(self, plugin: FoundPlugin) -> tuple[FoundPlugin, ...]:
        """The other plugins of the same kind and name."""
        return tuple(
            other
            for other in self.plugins
            if (other.kind, other.name) == (plugin.kind, plugin.name) and other != plugin
        )


@dataclass(frozen=True)
class _MetadataCopy:
    """One of possibly several directories of metadata of a distribution."""

    distribution: str
    metadata: Path
    plugins: tuple[FoundPlugin, ...]


@cache
def discover() -> Installed:
    """Find every plugin that a recipe can name, and stale and unreadable announcements.

    The environment is searched once a process; `discover.cache_clear()` makes the next call search
    it again.
    """
    copies: list[_MetadataCopy] = []
    unreadable: list[UnreadableMetadata] = []
    for folder in dict.fromkeys(sys.path):
        try:
            copies += _scan(folder)
        except Exception as error:  # any package may make entrypoints raise anything
            bad_files = _malformed(folder) or [UnreadableMetadata(Path(folder), str(error))]
            unreadable += bad_files
            copies += _scan_leniently(folder)
    plugins, stale = _settle(copies)
    for warning in (*stale, *unreadable):
        _log.debug("%s", warning)
    in_order = attrgetter("kind", "name", "distribution", "entry_point")
    return Installed(
        plugins=tuple(sorted(plugins, key=in_order)),
        stale=tuple(sorted(stale, key=lambda entry: in_order(entry.plugin))),
        unreadable=tuple(unreadable),
    )


def normalized(distribution: str) -> str:
    """Return a distribution's name as package indexes normalise it, for comparison."""
    return re.sub(r"[-_.]+", "-", distribution).lower()


def _scan(folder: str) -> list[_MetadataCopy]:
    """The distributions below one entry of `sys.path`. Raises if any of them is malformed."""
    copies = []
    for config, distribution in entrypoints.iter_files_distros([folder], repeated_distro="all"):
        entries = (
            (group, name, value)
            for group in config.sections()
            # Raw: `%` has no special meaning in these files.
            for name, value in config.items(group, raw=True)
        )
        copies.append(_metadata_copy(folder, distribution, entries))
    return copies


def _scan_leniently(folder: str) -> list[_MetadataCopy]:
    """Scan with `importlib.metadata`, which is more tolerant; skip what it cannot read either."""
    copies = []
    for file in _entry_point_files(folder):
        try:
            found = importlib.metadata.Distribution.at(file.parent).entry_points
        except Exception as error:  # `discover` reports the file; this is the detail
            _log.debug("%s cannot be read: %s", file, error)
            continue
        distribution = entrypoints.Distribution.from_name_version(file.parent.stem)
        entries = ((entry.group, entry.name, entry.value) for entry in found)
        copies.append(_metadata_copy(folder, distribution, entries))
    return copies


def _malformed(folder: str) -> list[UnreadableMetadata]:
    """The files below `folder` that `entrypoints` cannot read, with the reason."""
    bad_files = []
    for file in _entry_point_files(folder):
        try:
            entrypoints.CaseSensitiveConfigParser(delimiters=("=",)).read(file)
        except (configparser.Error, UnicodeDecodeError) as error:
            bad_files.append(UnreadableMetadata(file, str(error)))
    return bad_files


def _entry_point_files(folder: str) -> Iterator[Path]:
    for suffix in ("dist-info", "egg-info"):
        yield from sorted(Path(folder).absolute().glob(f"*.{suffix}/entry_points.txt"))


def _metadata_copy(
    folder: str, distribution: entrypoints.Distribution, entries: Iterable[tuple[str, str, str]]
) -> _MetadataCopy:
    """Make a copy from `entries`: group, name and value of all entry points of `distribution`."""
    name = normalized(distribution.name)
    metadata = _metadata_directory(Path(folder).absolute(), distribution)
    version = _version(metadata, distribution)
    plugins = tuple(
        FoundPlugin(_GROUPS[group], plugin, value, name, version, metadata)
        for group, plugin, value in entries
        if group in _GROUPS
    )
    return _MetadataCopy(name, metadata, plugins)


def _metadata_directory(folder: Path, distribution: entrypoints.Distribution) -> Path:
    """The directory that `entrypoints` has read, which it does not say; an egg or a zip itself."""
    version = "" if distribution.version is None else f"-{distribution.version}"
    for suffix in ("dist-info", "egg-info"):
        directory = folder / f"{distribution.name}{version}.{suffix}"
        if directory.is_dir():
            return directory
    return folder


def _version(metadata: Path, distribution: entrypoints.Distribution) -> str:
    """The version: of an `egg-info`, whose directory need not state it, from the file in it."""
    info = metadata / "PKG-INFO"
    if info.is_file():
        stated = email.message_from_bytes(info.read_bytes())["Version"]
        return stated or "unknown"
    return distribution.version or "unknown"


def _settle(copies: list[_MetadataCopy]) -> tuple[list[FoundPlugin], list[StalePlugin]]:
    """Use one copy of each distribution: an installed one, or else the first on the path.

    Plugins that only the other copies announce are stale.
    """
    plugins: list[FoundPlugin] = []
    stale: list[StalePlugin] = []
    for distribution in dict.fromkeys(copy.distribution for copy in copies):
        rivals = [copy for copy in copies if copy.distribution == distribution]
        used = min(rivals, key=lambda copy: copy.metadata.suffix != ".dist-info")
        plugins += used.plugins
        announced = {(found.kind, found.name, found.entry_point) for found in used.plugins}
        for copy in rivals:
            for found in copy.plugins:
                key = (found.kind, found.name, found.entry_point)
                if key not in announced:
                    announced.add(key)
                    stale.append(StalePlugin(found, used.metadata))
    return plugins, stale
