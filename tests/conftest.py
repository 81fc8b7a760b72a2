"""Fixtures that several folders share, and the order of the tests on two workers."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import settings
from xdist.scheduler import LoadScopeScheduling

from tests.support import fuzzing

pytest_plugins = [
    "tests.support.component_processes",
    "tests.support.inference_server",
    "tests.support.saved_run_fixtures",
]

settings.load_profile(fuzzing.SHORT)  # `--hypothesis-profile` replaces it.

TESTS = Path(__file__).parent

# They take the longest, so they begin first: no worker is to be left alone with one of them.
LONG_FOLDERS = ("jobs", "faults", "vllm")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: _folder(item) not in LONG_FOLDERS)


def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> LoadScopeScheduling:
    return FolderScheduling(config, log)  # type: ignore[arg-type]


class FolderScheduling(LoadScopeScheduling):
    """Keeps the tests of a folder on one worker: they share expensive runs."""

    def _split_scope(self, nodeid: str) -> str:
        return nodeid.removeprefix("tests/").partition("/")[0]


def _folder(item: pytest.Item) -> str:
    return item.path.relative_to(TESTS).parts[0]
