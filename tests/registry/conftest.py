"""A place to install distributions in, for one test."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.site_packages import SitePackages
from torchrl_ckpt.registry.discovery import discover


@pytest.fixture(name="site")
def make_site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SitePackages]:
    """Empty site-packages at the front of `sys.path`."""
    directory = tmp_path / "site"
    directory.mkdir()
    monkeypatch.syspath_prepend(directory)
    modules = set(sys.modules)
    yield SitePackages(directory)
    for name in set(sys.modules) - modules:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]
    discover.cache_clear()
