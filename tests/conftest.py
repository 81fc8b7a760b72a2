"""Fixtures that several test folders share live in tests/support."""

from __future__ import annotations

from pathlib import Path

import pytest

TESTS = Path(__file__).parent

pytest_plugins = ["tests.support.component_processes", "tests.support.inference_server"]


def pytest_itemcollected(item: pytest.Item) -> None:
    """Keep the tests of a folder on one worker of pytest-xdist: they share expensive runs.

    Not in `pytest_collection_modifyitems`, where pytest-xdist has read the groups already.
    """
    item.add_marker(pytest.mark.xdist_group(item.path.relative_to(TESTS).parts[0]))
