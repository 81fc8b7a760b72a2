"""`torchrl-ckpt plugins`: list, describe and check the installed plugins."""

from __future__ import annotations

import argparse
import inspect
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from torchrl_ckpt.config.describe import default_text, describe, dotted, listed
from torchrl_ckpt.config.option_spec import REQUIRED, all_keys
from torchrl_ckpt.config.section import PluginTable
from torchrl_ckpt.plugin_api.errors import EnvironmentFailed, PluginBroken, UserError
from torchrl_ckpt.plugin_api.plugin import KINDS
from torchrl_ckpt.registry.discovery import FoundPlugin, Installed, discover
from torchrl_ckpt.registry.loading import LoadedPlugin, load_found, syntax_error
from torchrl_ckpt.registry.lookup import find_plugins

_TRIED = ("environments", "losses")


def add_parser(commands: Any) -> None:
    """Add `plugins` and its commands to the subparsers `commands`.

    Each sets `execute` in the parsed arguments: a function that takes them, carries out the command
    and returns the exit code.
    """
    parser = commands.add_parser(
        "plugins",
        help="list, describe and check the installed plugins",
        description="Plugins are found by the entry points of installed distributions. A recipe "
        'names one as `type = "name"`, or as `type = "distribution:name"` where two distributions '
        "offer the same name.",
    )
    plugin_commands = parser.add_subparsers(
        dest="plugins_command", required=True, metavar="COMMAND"
    )

    list_command = plugin_commands.add_parser(
        "list",
        help="list the installed plugins; imports none",
        description="List every plugin that a recipe can name, and report conflicts, stale copies, "
        "malformed metadata and syntax errors. Imports no plugin.",
    )
    list_command.add_argument("--kind", choices=KINDS, help="only plugins of this kind")
    list_command.add_argument("--json", action="store_true", help="print the result as JSON")
    list_command.set_defaults(execute=_list)

    show_command = plugin_commands.add_parser(
        "show",
        help="describe a plugin and its options",
        description="Import a plugin, and show its description and its options with their types, "
        "defaults and meaning. Exits with 2 if the plugin cannot be used.",
    )
    show_command.add_argument(
        "kind", nargs="?", choices=KINDS, metavar="KIND", help=f"one of {', '.join(KINDS)}"
    )
    show_command.add_argument("name", metavar="NAME", help="`name` or `distribution:name`")
    show_command.set_defaults(execute=_show)

    check_command = plugin_commands.add_parser(
        "check",
        help="import plugins and try them",
        description="Import all plugins, or those called NAME, and say which of them keep their "
        "contracts. An environment and a loss whose options all have defaults are tried: one "
        "problem and the score of its answer, the loss of three tokens and its gradient. Exits "
        "with 1 if any does not keep its contract.",
    )
    check_command.add_argument(
        "name", nargs="?", metavar="NAME", help="`name` or `distribution:name`; default: all"
    )
    check_command.set_defaults(execute=_check)


def _list(args: argparse.Namespace) -> int:
    installed = discover()
    plugins = [plugin for plugin in installed.plugins if args.kind in (None, plugin.kind)]
    stale = [entry for entry in installed.stale if args.kind in (None, entry.plugin.kind)]
    if args.json:
        document = {
            "plugins": [_as_json(plugin, installed) for plugin in plugins],
            "stale": [asdict(entry) for entry in stale],
            "unreadable": [asdict(entry) for entry in installed.unreadable],
        }
        print(json.dumps(document, indent=1, default=str))
        return 0
    console = _console()
    table = _table("kind", "name", "distribution", "version", "entry point")
    conflicts = [plugin for plugin in plugins if installed.rivals(plugin)]
    for plugin in plugins:
        name = f"{plugin.name} (conflict)" if plugin in conflicts else plugin.name
        row = (plugin.kind, name, plugin.distribution, plugin.version, plugin.entry_point)
        table.add_row(*map(escape, row))
    console.print(table)
    for plugin in conflicts:
        console.print(_how_to_choose(plugin), markup=False)
    for plugin in plugins:
        if error := syntax_error(plugin):
            console.print(f"broken: {plugin.kind} `{plugin.name}`: {error}", markup=False)
    for warning in (*stale, *installed.unreadable):
        console.print(str(warning), markup=False)
    return 0


def _show(args: argparse.Namespace) -> int:
    console = _console()
    exit_code = 0
    for found in find_plugins(args.name, args.kind):
        try:
            _describe(console, load_found(found))
        except PluginBroken as error:
            console.print(str(error), markup=False)
            exit_code = error.exit_code
    return exit_code


def _check(args: argparse.Namespace) -> int:
    console = _console()
    plugins: Sequence[FoundPlugin] = find_plugins(args.name) if args.name else discover().plugins
    num_broken = 0
    for found in plugins:
        try:
            tried = _try(load_found(found))
        except (PluginBroken, EnvironmentFailed) as error:
            num_broken += 1
            console.print(f"[red]broken[/]  {found.kind} {escape(f'{found.name}: {error}')}")
        else:
            console.print(
                f"[green]good[/]    {found.kind} {escape(f'{found.name}: {found}{tried}')}"
            )
    console.print(f"{len(plugins) - num_broken} good, {num_broken} broken")
    return 1 if num_broken else 0


def _try(plugin: LoadedPlugin) -> str:
    """Try the plugin with its default options, and say what came out.

    Raises `PluginBroken` and `EnvironmentFailed`.
    """
    # Imported here: it needs torch, and the other commands do not.
    from torchrl_ckpt.inspection.plugin_trials import try_plugin

    required = [name for name, spec in plugin.options.items() if spec.default is REQUIRED]
    if required and plugin.found.kind in _TRIED:
        options = listed([f"`{name}`" for name in required], "and")
        return f"; not tried, as it needs {options}: the --dry-run of a recipe tries it"
    try:
        outcome = try_plugin(plugin.found.kind, PluginTable(type=plugin.found.qualified_name))
    except (PluginBroken, EnvironmentFailed):
        raise
    except UserError as error:
        return f"; not tried: its default options are refused: {error}"
    return f"; {outcome}" if outcome else ""


def _as_json(plugin: FoundPlugin, installed: Installed) -> dict[str, Any]:
    rivals = [rival.qualified_name for rival in installed.rivals(plugin)]
    return asdict(plugin) | {"conflicts_with": rivals, "syntax_error": syntax_error(plugin)}


def _how_to_choose(plugin: FoundPlugin) -> str:
    return (
        f"conflict: {plugin.kind} `{plugin.name}` of {plugin.distribution} has to be named as "
        f'type = "{plugin.qualified_name}"'
    )


def _describe(console: Console, plugin: LoadedPlugin) -> None:
    found = plugin.found
    console.print(f"[bold]{escape(found.name)}[/] ({found.kind}), {escape(str(found))}")
    console.print(inspect.getdoc(plugin.cls) or "It has no description.", markup=False)
    if not plugin.config or not plugin.options:
        console.print("It takes no options.")
        return
    table = _table("option", "takes", "default", "meaning")
    for key, spec in all_keys(plugin.config):
        row = (dotted(key), describe(spec), default_text(spec), spec.documentation)
        table.add_row(*map(escape, row))
    console.print(table)


def _console() -> Console:
    # Without a terminal, as in a pipe to grep, a row of a table is printed as one line.
    width = None if sys.stdout.isatty() else 160
    return Console(highlight=False, soft_wrap=True, width=width)


def _table(*columns: str) -> Table:
    """A table that folds cells too long for the terminal instead of cutting them off."""
    table = Table(box=None, padding=(0, 2, 0, 0))
    for column in columns:
        table.add_column(column, overflow="fold", no_wrap=column == columns[0])
    return table
