"""Finds the one plugin that a name means, or explains why there is not exactly one."""

from __future__ import annotations

import sys

from torchrl_ckpt.plugin_api.errors import PluginConflict, PluginNotFound
from torchrl_ckpt.plugin_api.plugin import Kind
from torchrl_ckpt.plugin_api.similar_names import did_you_mean, similar_name
from torchrl_ckpt.registry.discovery import FoundPlugin, Installed, discover, normalized


def find_plugin(kind: Kind, name: str) -> FoundPlugin:
    """Return the plugin that `type = "name"` or `type = "distribution:name"` means.

    Raises `PluginNotFound` and `PluginConflict`.
    """
    candidates = find_plugins(name, kind)
    if len(candidates) > 1:
        raise PluginConflict(_conflict(kind, name, candidates))
    return candidates[0]


def find_plugins(name: str, kind: Kind | None = None) -> list[FoundPlugin]:
    """Return every plugin called `name`, of one kind or of any. Raises `PluginNotFound`."""
    installed = discover()
    distribution, _, bare_name = name.rpartition(":")
    candidates = [
        plugin
        for plugin in installed.plugins
        if plugin.name == bare_name
        and kind in (None, plugin.kind)
        and normalized(distribution) in ("", plugin.distribution)
    ]
    if not candidates:
        raise PluginNotFound(_absence(kind, name, installed))
    return candidates


def _conflict(kind: Kind, name: str, candidates: list[FoundPlugin]) -> str:
    lines = [f"{len(candidates)} plugins of kind `{kind}` are called `{name}`:"]
    lines += [f"  {plugin}, {plugin.metadata}" for plugin in candidates]
    choices = dict.fromkeys(f'type = "{plugin.qualified_name}"' for plugin in candidates)
    if len(choices) > 1:
        lines.append(f"Say which one: {' or '.join(choices)}; or uninstall the other.")
    else:
        lines.append(
            "One distribution names it twice: remove one of its entry points, or tell its author."
        )
    return "\n".join(lines)


def _absence(kind: Kind | None, name: str, installed: Installed) -> str:
    bare_name = name.rpartition(":")[2]
    of_kind = [plugin for plugin in installed.plugins if kind in (None, plugin.kind)]
    namesakes = [plugin for plugin in installed.plugins if plugin.name == bare_name]
    hint = did_you_mean(
        None if namesakes else similar_name(bare_name, {plugin.name for plugin in of_kind})
    )
    lines = [
        f"no plugin{f' of kind `{kind}`' if kind else ''} called `{name}` is installed{hint or '.'}"
    ]
    if namesakes:
        offers = ", ".join(f"{plugin.kind} `{plugin.qualified_name}`" for plugin in namesakes)
        lines.append(f"Plugins of that name: {offers}.")
    names = ", ".join(
        f"{plugin.name} ({plugin.distribution} {plugin.version})" for plugin in of_kind
    )
    lines.append(f"Installed: {names or 'none'}.")
    lines += [str(entry) for entry in installed.stale if entry.plugin.name == bare_name]
    lines += [str(entry) for entry in installed.unreadable]
    lines.append(
        "Install the distribution that offers it into this environment: "
        f"`{sys.executable} -m pip install ...`. An entry point added to a pyproject.toml shows "
        "once that project is installed again. `torchrl-ckpt plugins list` shows every plugin."
    )
    return "\n".join(lines)
