"""Installs distributions as pip would leave them, by hand: modules and a directory of metadata."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from textwrap import dedent

import pytest

Install = Callable[..., Path]
Run = Callable[..., subprocess.CompletedProcess[str]]

_COMMAND = """
import argparse, sys
from torchrl_ckpt.cli import plugins
parser = argparse.ArgumentParser(prog="torchrl-ckpt")
plugins.add_parser(parser.add_subparsers(required=True))
sys.exit(plugins.main(parser.parse_args()))
"""


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A directory at the front of `sys.path`, in place of a site-packages."""
    directory = tmp_path / "site"
    directory.mkdir()
    monkeypatch.syspath_prepend(directory)
    modules = set(sys.modules)
    yield directory
    for name in set(sys.modules) - modules:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]


@pytest.fixture
def install(site: Path) -> Install:
    """Puts a distribution into `site`, or into `folder`, and returns its metadata directory.

    `entry_points` is the text of its `entry_points.txt`; `modules` maps names to source.
    """

    def install(
        name: str,
        entry_points: str | bytes,
        *,
        modules: dict[str, str] | None = None,
        version: str = "1.0",
        folder: Path = site,
        egg_info: bool = False,
    ) -> Path:
        metadata = folder / (f"{name}.egg-info" if egg_info else f"{name}-{version}.dist-info")
        metadata.mkdir(parents=True)
        text = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        (metadata / ("PKG-INFO" if egg_info else "METADATA")).write_text(text)
        if isinstance(entry_points, str):
            entry_points = dedent(entry_points).encode()
        (metadata / "entry_points.txt").write_bytes(entry_points)
        for module, source in (modules or {}).items():
            (folder / f"{module}.py").write_text(dedent(source))
        importlib.invalidate_caches()
        return metadata

    return install


@pytest.fixture
def run_python(site: Path) -> Run:
    """Runs source text, or without one `torchrl-ckpt`, in a fresh interpreter that sees `site`."""

    def run_python(*arguments: str, source: str = _COMMAND) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", dedent(source), *arguments],
            env=os.environ | {"PYTHONPATH": str(site)},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    return run_python


@pytest.fixture
def good_loss() -> str:
    """Source of the smallest loss that keeps its contract, as class `GoodLoss`."""
    return dedent(
        """
        class GoodLoss:
            \"\"\"The smallest loss.\"\"\"

            plugin_api = 1
            requires = frozenset()

            def __call__(self, inputs):
                raise NotImplementedError
        """
    )
