"""Fixtures that several test folders share live in tests/support."""

from __future__ import annotations

from pathlib import Path

import pytest

TESTS = Path(__file__).parent

pytest_plugins = ["tests.support.component_processes", "tests.support.inference_server"]


@pytest.hookimpl(tryfirst=True)  # Before pytest-xdist reads the groups.
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep the tests of a folder on one worker of pytest-xdist: they share expensive runs."""
    for item in items:
        folder = item.path.relative_to(TESTS).parts[0]
        item.add_marker(pytest.mark.xdist_group(folder))
