"""What the fault tests share: the fork server and the checks of the invariants."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.faults import strace
from tests.support.faults.invariants import Invariants
from tests.support.faults.saver import Saver
from tests.support.one_rank_world import one_rank_world


@pytest.fixture(scope="package", name="saver")
def start_saver() -> Iterator[Saver]:
    saver = Saver()
    yield saver
    saver.close()


@pytest.fixture(scope="package", name="invariants")
def make_invariants(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Invariants]:
    with one_rank_world() as world:
        yield Invariants(world, tmp_path_factory.mktemp("expected"))


@pytest.fixture(scope="package")
def needs_strace() -> None:
    if reason := strace.unavailable():
        pytest.skip(reason)
