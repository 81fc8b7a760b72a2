"""Installs distributions as pip leaves them: modules and a directory of metadata."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from textwrap import dedent

from torchrl_ckpt.registry.discovery import discover

GOOD_LOSS = '''
from torchrl_ckpt.plugin_api.losses import LossOutput

class GoodLoss:
    """The smallest loss that keeps its contract."""

    plugin_api = 1
    requires = frozenset()

    def __call__(self, inputs):
        return LossOutput(inputs.logits.square().sum())
'''


class SitePackages:
    """A directory of installed distributions, on `sys.path` for as long as the test runs."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def install(
        self,
        name: str,
        entry_points: str | bytes,
        *,
        modules: Mapping[str, str] | None = None,
        version: str = "1.0",
        folder: Path | None = None,
        egg_info: bool = False,
    ) -> Path:
        """Install a distribution here, or in `folder`; return its directory of metadata.

        `entry_points` is the text of its `entry_points.txt`; `modules` maps names to source.
        """
        folder = folder or self.directory
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
        discover.cache_clear()
        return metadata

    def install_loss(self, source: str, *, entry_point: str = "GoodLoss") -> Path:
        """Install the loss `acme` of distribution `acme-losses`, with `source` as its module."""
        return self.install(
            "acme_losses",
            f"[torchrl_ckpt.losses]\nacme = acme_losses:{entry_point}\n",
            modules={"acme_losses": source},
        )

    def run_python(self, source: str) -> subprocess.CompletedProcess[str]:
        """Run `source` in a new interpreter that sees what is installed here."""
        return self._run("-c", dedent(source))

    def run_command(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run `torchrl-ckpt` in a new interpreter that sees what is installed here."""
        source = "import sys; from torchrl_ckpt.cli.main import main; sys.exit(main())"
        return self._run("-c", source, *arguments)

    def _run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, *arguments],
            env=os.environ | {"PYTHONPATH": str(self.directory)},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
