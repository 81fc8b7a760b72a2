"""Finds every installed plugin by its entry point, and imports none of them.

This is the one module that knows the `entrypoints` package, and where its habits are mended: its
scan raises when any installed package has a malformed `entry_points.txt`, and of two copies of one
distribution it takes the first on the path in silence.
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

_LOG = logging.getLogger(__name__)
_GROUPS: dict[str, Kind] = {f"torchrl_ckpt.{kind}": kind for kind in KINDS}


@dataclass(frozen=True)
class FoundPlugin:
    """A plugin as its distribution announces it; nothing of it has been imported."""

    kind: Kind
    name: str
    entry_point: str
    """`module:attribute`."""
    distribution: str
    """Normalised as package indexes do it: `acme-plugins`."""
    version: str
    metadata: Path
    """Where the announcement stands."""

    def __str__(self) -> str:
        return f"{self.distribution} {self.version} ({self.entry_point})"

    @property
    def qualified_name(self) -> str:
        """The name that stays unambiguous when another distribution offers the same one."""
        return f"{self.distribution}:{self.name}"

    def import_object(self) -> Any:
        """What the entry point names. Raises whatever importing it raises."""
        return entrypoints.EntryPoint.from_string(self.entry_point, self.name).load()


@dataclass(frozen=True)
class StalePlugin:
    """A plugin that only a second copy of its distribution's metadata announces.

    A build leaves an `egg-info` in the source tree, and Python finds it from there for as long as
    it lies about. What is installed decides; such a leftover is shown and never loaded.
    """

    plugin: FoundPlugin
    installed: Path
    """The metadata of the copy that counts."""

    def __str__(self) -> str:
        return (
            f"{self.plugin.metadata} says that {self.plugin.kind} `{self.plugin.name}` is "
            f"{self.plugin.entry_point}, but the copy of {self.plugin.distribution} that counts, "
            f"{self.installed}, does not. Install {self.plugin.distribution} again if the latter "
            "is out of date; delete the former if not."
        )


@dataclass(frozen=True)
class UnreadableMetadata:
    """A malformed `entry_points.txt`, of a plugin or of any other package."""

    file: Path
    reason: str

    def __str__(self) -> str:
        return f"{self.file} is malformed, so plugins may be missing: {self.reason}"


@dataclass(frozen=True)
class Installed:
    """All that was found in this environment, sorted by kind, name and distribution."""

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
class _Copy:
    """One distribution's metadata as it lies in one place; there may be several places."""

    distribution: str
    metadata: Path
    plugins: tuple[FoundPlugin, ...]


@cache
def discover() -> Installed:
    """Find every plugin that a recipe can name in this environment, and what is odd about others.

    Done once a process: whoever changes what is installed calls `discover.cache_clear()`.
    """
    copies: list[_Copy] = []
    unreadable: list[UnreadableMetadata] = []
    for folder in dict.fromkeys(sys.path):
        try:
            copies += _scan(folder)
        except Exception as error:  # whatever some stranger's package makes entrypoints raise
            bad_files = _malformed(folder) or [UnreadableMetadata(Path(folder), str(error))]
            unreadable += bad_files
            copies += _scan_leniently(folder)
    plugins, stale = _settle(copies)
    for oddity in (*stale, *unreadable):
        _LOG.debug("%s", oddity)
    in_order = attrgetter("kind", "name", "distribution", "entry_point")
    return Installed(
        plugins=tuple(sorted(plugins, key=in_order)),
        stale=tuple(sorted(stale, key=lambda entry: in_order(entry.plugin))),
        unreadable=tuple(unreadable),
    )


def normalized(distribution: str) -> str:
    """A distribution's name in the spelling that compares equal however it was written."""
    return re.sub(r"[-_.]+", "-", distribution).lower()


def _scan(folder: str) -> list[_Copy]:
    """The distributions below one entry of `sys.path`. Raises if any of them is malformed."""
    copies = []
    for config, distribution in entrypoints.iter_files_distros([folder], repeated_distro="all"):
        entries = (
            (group, name, value)
            for group in config.sections()
            # Raw: a `%` has no meaning in these files.
            for name, value in config.items(group, raw=True)
        )
        copies.append(_copy(folder, distribution, entries))
    return copies


def _scan_leniently(folder: str) -> list[_Copy]:
    """The same through `importlib.metadata`, which forgives more, less what even it cannot read."""
    copies = []
    for file in _entry_point_files(folder):
        try:
            found = importlib.metadata.Distribution.at(file.parent).entry_points
        except Exception as error:  # `discover` reports the file; this is the detail
            _LOG.debug("%s is past reading: %s", file, error)
            continue
        distribution = entrypoints.Distribution.from_name_version(file.parent.stem)
        entries = ((entry.group, entry.name, entry.value) for entry in found)
        copies.append(_copy(folder, distribution, entries))
    return copies


def _malformed(folder: str) -> list[UnreadableMetadata]:
    """The files below `folder` that `entrypoints` stumbles over, with the reason."""
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


def _copy(
    folder: str, distribution: entrypoints.Distribution, entries: Iterable[tuple[str, str, str]]
) -> _Copy:
    """`entries`: group, name and value of everything that the distribution announces."""
    name = normalized(distribution.name)
    metadata = _metadata_directory(Path(folder).absolute(), distribution)
    version = _version(metadata, distribution)
    plugins = tuple(
        FoundPlugin(_GROUPS[group], plugin, value, name, version, metadata)
        for group, plugin, value in entries
        if group in _GROUPS
    )
    return _Copy(name, metadata, plugins)


def _metadata_directory(folder: Path, distribution: entrypoints.Distribution) -> Path:
    """Where `entrypoints`, which does not tell, has read; for an egg or a zip, that itself."""
    version = "" if distribution.version is None else f"-{distribution.version}"
    for suffix in ("dist-info", "egg-info"):
        directory = folder / f"{distribution.name}{version}.{suffix}"
        if directory.is_dir():
            return directory
    return folder


def _version(metadata: Path, distribution: entrypoints.Distribution) -> str:
    """From the directory's name, which for an `egg-info` need not hold it."""
    info = metadata / "PKG-INFO"
    if info.is_file():
        stated = email.message_from_bytes(info.read_bytes())["Version"]
        return stated or "unknown"
    return distribution.version or "unknown"


def _settle(copies: list[_Copy]) -> tuple[list[FoundPlugin], list[StalePlugin]]:
    """Let one copy of each distribution count: one that was installed, else the first on the path.

    What the other copies announce besides is stale.
    """
    plugins: list[FoundPlugin] = []
    stale: list[StalePlugin] = []
    for distribution in dict.fromkeys(copy.distribution for copy in copies):
        rivals = [copy for copy in copies if copy.distribution == distribution]
        counts = min(rivals, key=lambda copy: copy.metadata.suffix != ".dist-info")
        plugins += counts.plugins
        announced = {(found.kind, found.name, found.entry_point) for found in counts.plugins}
        for copy in rivals:
            for found in copy.plugins:
                key = (found.kind, found.name, found.entry_point)
                if key not in announced:
                    announced.add(key)
                    stale.append(StalePlugin(found, counts.metadata))
    return plugins, stale
