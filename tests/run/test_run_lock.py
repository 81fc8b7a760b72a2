"""One command alone is at work in a run's directory, or one component of each name."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from torchrl_ckpt.plugin_api.errors import RecipeError, RunDirectoryInUse
from torchrl_ckpt.run.run_lock import Pair, join_pair, locked_component, locked_run

OPTIONS = {"max_steps": 4, "ckpt.resume_step": None}


@contextmanager
def joined(run: Path, component: str, **options: int | None) -> Iterator[Pair]:
    with locked_component(run, component):
        yield join_pair(run, component, OPTIONS | options)


def test_a_second_job_is_refused_and_told_which_one_is_at_work(tmp_path: Path) -> None:
    with (
        locked_run(tmp_path, "rl"),
        pytest.raises(RunDirectoryInUse, match=rf"in use by `rl` \(process {os.getpid()}\)"),
        locked_run(tmp_path, "sft"),
    ):
        pass


def test_a_component_is_refused_beside_a_job(tmp_path: Path) -> None:
    with (
        locked_run(tmp_path, "rl"),
        pytest.raises(RunDirectoryInUse, match=r"`rl` \(process"),
        locked_component(tmp_path, "trainer"),
    ):
        pass


def test_a_second_component_of_a_name_is_refused(tmp_path: Path) -> None:
    with (
        joined(tmp_path, "trainer"),
        joined(tmp_path, "orchestrator"),
        pytest.raises(RunDirectoryInUse, match=rf"the `trainer` \(process {os.getpid()}\)"),
        joined(tmp_path, "trainer"),
    ):
        pass


def test_a_job_is_refused_beside_components_which_are_named(tmp_path: Path) -> None:
    with locked_run(tmp_path, "rl"):
        pass  # What it wrote about itself is no longer true.
    with (
        joined(tmp_path, "trainer"),
        joined(tmp_path, "orchestrator"),
        pytest.raises(
            RunDirectoryInUse,
            match=r"the `trainer` \(process \d+\) and the `orchestrator` \(process",
        ),
        locked_run(tmp_path, "rl"),
    ):
        pass


@pytest.mark.parametrize("order", [("trainer", "orchestrator"), ("orchestrator", "trainer")])
def test_the_second_component_joins_the_attempt_of_the_first(
    tmp_path: Path, order: tuple[str, str]
) -> None:
    first, second = order
    with joined(tmp_path, first) as one, joined(tmp_path, second) as other:
        assert (other.id, other.number) == (one.id, one.number)
    with joined(tmp_path, second) as later:
        assert later.id != one.id
        assert later.number == one.number + 1


def test_a_component_that_is_still_settling_its_start_joins_the_faster_one(tmp_path: Path) -> None:
    with joined(tmp_path, "trainer") as earlier:
        pass
    with locked_component(tmp_path, "trainer"), joined(tmp_path, "orchestrator") as fast:
        assert fast.id != earlier.id
        assert join_pair(tmp_path, "trainer", OPTIONS).id == fast.id


def test_a_component_whose_partner_has_ended_takes_no_new_partner(tmp_path: Path) -> None:
    with joined(tmp_path, "orchestrator"):
        with joined(tmp_path, "trainer"):
            pass
        with (
            pytest.raises(RunDirectoryInUse, match=r"attempt whose trainer has ended.*start both"),
            joined(tmp_path, "trainer"),
        ):
            pass


def test_components_with_different_options_do_not_join(tmp_path: Path) -> None:
    with ExitStack() as stack:
        stack.enter_context(joined(tmp_path, "trainer"))
        with pytest.raises(RecipeError, match=r"`max_steps` is 9, but 4 for the `trainer`"):
            stack.enter_context(joined(tmp_path, "orchestrator", max_steps=9))
