"""`torchrl-ckpt plugins`: what is installed, what one of them offers, and whether they work."""

from __future__ import annotations

import argparse
import inspect
import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from torchrl_ckpt import registry
from torchrl_ckpt.plugin_api.errors import PluginBroken
from torchrl_ckpt.plugin_api.plugin import KINDS
from torchrl_ckpt.registry import FoundPlugin, Installed, LoadedPlugin

Subparsers = Any  # argparse's own class for them is private


def add_parser(subparsers: Subparsers) -> None:
    """Add `plugins` and its three commands."""
    parser = subparsers.add_parser(
        "plugins",
        help="list, describe and check the installed plugins",
        description="Plugins are found by the entry points of installed distributions. A recipe "
        'names one as `type = "name"`, or `type = "distribution:name"` where two distributions '
        "offer the same name.",
    )
    commands = parser.add_subparsers(dest="plugins_command", metavar="COMMAND", required=True)

    listing = commands.add_parser(
        "list",
        help="what is installed; imports no plugin",
        description="Show every plugin that a recipe can name, and what is odd about the rest: "
        "conflicts, stale copies, malformed metadata. Imports no plugin.",
    )
    listing.add_argument("--kind", choices=KINDS, help="only plugins of this kind")
    listing.add_argument("--json", action="store_true", help="print JSON")

    show = commands.add_parser(
        "show",
        help="what a plugin says about itself, and its options",
        description="Import a plugin and show its description and its options with their types, "
        "defaults and meaning.",
    )
    show.add_argument(
        "kind", nargs="?", choices=KINDS, metavar="KIND", help=f"one of {', '.join(KINDS)}"
    )
    show.add_argument("name", metavar="NAME", help="`name` or `distribution:name`")

    check = commands.add_parser(
        "check",
        help="import plugins and compare them with their contracts",
        description="Import all plugins, or those called NAME, and say which keep their "
        "contracts. Exits with 1 if one does not.",
    )
    check.add_argument(
        "name", nargs="?", metavar="NAME", help="`name` or `distribution:name`; unset: all"
    )


def main(args: argparse.Namespace) -> int:
    """Do what the parsed `args` say and return the exit code.

    Raises `PluginNotFound` for a name that none has.
    """
    # Where there is no terminal, a line of the table stays a line, for grep's sake.
    width = None if sys.stdout.isatty() else 160
    console = Console(highlight=False, soft_wrap=True, width=width)
    if args.plugins_command == "list":
        return _list(console, args.kind, as_json=args.json)
    if args.plugins_command == "show":
        return _show(console, registry.find_all(args.name, args.kind))
    return _check(
        console, registry.find_all(args.name) if args.name else registry.discover().plugins
    )


def _list(console: Console, kind: str | None, *, as_json: bool) -> int:
    installed = registry.discover()
    plugins = [plugin for plugin in installed.plugins if kind in (None, plugin.kind)]
    stale = [entry for entry in installed.stale if kind in (None, entry.plugin.kind)]
    if as_json:
        listing = {
            "plugins": [_as_json(plugin, installed) for plugin in plugins],
            "stale": [asdict(entry) for entry in stale],
            "unreadable": [asdict(entry) for entry in installed.unreadable],
        }
        print(json.dumps(listing, indent=1, default=str))
        return 0
    table = _table("kind", "name", "distribution", "version", "entry point")
    conflicts = [plugin for plugin in plugins if installed.rivals(plugin)]
    for plugin in plugins:
        name = f"{plugin.name} (conflict)" if plugin in conflicts else plugin.name
        row = (plugin.kind, name, plugin.distribution, plugin.version, plugin.entry_point)
        table.add_row(*map(escape, row))
    console.print(table)
    for plugin in conflicts:
        console.print(_how_to_choose(plugin), markup=False)
    for remark in (*stale, *installed.unreadable):
        console.print(str(remark), markup=False)
    return 0


def _as_json(plugin: FoundPlugin, installed: Installed) -> dict[str, Any]:
    rivals = [rival.qualified_name for rival in installed.rivals(plugin)]
    return asdict(plugin) | {"conflicts_with": rivals}


def _how_to_choose(plugin: FoundPlugin) -> str:
    return (
        f"conflict: {plugin.kind} `{plugin.name}` of {plugin.distribution} has to be named as "
        f'type = "{plugin.qualified_name}"'
    )


def _show(console: Console, plugins: Iterable[FoundPlugin]) -> int:
    exit_code = 0
    for found in plugins:
        try:
            _describe(console, registry.load_found(found))
        except PluginBroken as error:
            console.print(str(error), markup=False)
            exit_code = error.exit_code
    return exit_code


def _describe(console: Console, plugin: LoadedPlugin) -> None:
    found = plugin.found
    console.print(f"[bold]{escape(found.name)}[/] ({found.kind}), {escape(str(found))}")
    console.print(inspect.getdoc(plugin.cls) or "It does not describe itself.", markup=False)
    if not plugin.options:
        console.print("It takes no options.")
        return
    table = _table("option", "type", "default", "meaning")
    for option in plugin.options:
        default = "required" if option.default is None else option.default
        table.add_row(*map(escape, (option.name, option.type, default, option.description)))
    console.print(table)


def _check(console: Console, plugins: Sequence[FoundPlugin]) -> int:
    broken = 0
    for found in plugins:
        try:
            registry.load_found(found)
        except PluginBroken as error:
            broken += 1
            console.print(f"[red]broken[/]  {escape(str(error))}")
        else:
            console.print(f"[green]good[/]    {found.kind} {escape(f'{found.name}: {found}')}")
    console.print(f"{len(plugins) - broken} good, {broken} broken")
    return 1 if broken else 0


def _table(*columns: str) -> Table:
    """A table that folds what is too long for the terminal, and never cuts it off."""
    table = Table(box=None, padding=(0, 2, 0, 0))
    for column in columns:
        table.add_column(column, overflow="fold", no_wrap=column == columns[0])
    return table
