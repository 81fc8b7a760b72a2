"""A wait ends with what was awaited, or at its deadline with a message that names it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from torchrl_ckpt.plugin_api.errors import WaitTimeout
from torchrl_ckpt.run.polling import Deadline, wait_for, wait_for_async


def appears_at_look(number: int) -> Callable[[], str | None]:
    looks = iter(range(1, number + 1))
    return lambda: "rollouts" if next(looks) == number else None


async def test_both_waits_return_what_appears() -> None:
    deadline = Deadline(60, "trainer.limit")
    assert wait_for(appears_at_look(3), "the rollouts", deadline) == "rollouts"
    assert await wait_for_async(appears_at_look(3), "the rollouts", deadline) == "rollouts"


async def test_both_waits_name_what_is_missing_and_the_option_that_sets_the_limit() -> None:
    message = r"waited 0 s for the rollouts.*`trainer\.limit` sets the limit"
    with pytest.raises(WaitTimeout, match=message):
        wait_for(lambda: None, "the rollouts", Deadline(0.01, "trainer.limit"))
    with pytest.raises(WaitTimeout, match=message):
        await wait_for_async(lambda: None, "the rollouts", Deadline(0.01, "trainer.limit"))


def test_several_waits_share_one_deadline() -> None:
    deadline = Deadline(0.01, "ckpt.timeout")
    with pytest.raises(WaitTimeout, match="the trainer's part"):
        wait_for(lambda: None, "the trainer's part", deadline)
    looks = 0

    def look() -> None:
        nonlocal looks
        looks += 1

    with pytest.raises(WaitTimeout, match="the orchestrator's part"):
        wait_for(look, "the orchestrator's part", deadline)
    assert looks == 1


async def test_an_async_wait_leaves_the_event_loop_to_other_tasks() -> None:
    delivered: list[str] = []

    async def deliver() -> None:
        delivered.append("policy")

    task = asyncio.create_task(deliver())
    found = await wait_for_async(
        lambda: delivered or None, "the policy", Deadline(60, "orchestrator.limit")
    )
    assert found == ["policy"]
    await task
