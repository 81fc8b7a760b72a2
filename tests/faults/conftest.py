"""What the fault tests share: the fork server, and the world in which promises are checked."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.faults import strace
from tests.support.faults.invariants import Promise
from tests.support.faults.saver import Saver
from tests.support.toy_training import one_rank


@pytest.fixture(scope="package")
def saver() -> Iterator[Saver]:
    saver = Saver()
    yield saver
    saver.close()


@pytest.fixture(scope="package")
def promise(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Promise]:
    with one_rank() as world:
        yield Promise(world, tmp_path_factory.mktemp("references"))


@pytest.fixture(scope="package")
def needs_strace() -> None:
    if reason := strace.unavailable():
        pytest.skip(reason)
