"""A write that the disk refuses is tried again, for as long as an option says."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path

import pytest

from torchrl_ckpt.plugin_api.errors import WaitTimeout
from torchrl_ckpt.run.patience import Patience
from torchrl_ckpt.run.progress import ProgressLog, ProgressMessage, ProgressTail


def patience(directory: Path, seconds: float) -> Patience:
    progress = ProgressLog(directory / "progress.jsonl", "trainer")
    return Patience(seconds, "trainer.publish_timeout", progress)


def messages(directory: Path) -> list[str]:
    events = ProgressTail(directory / "progress.jsonl").read()
    return [event.message for event in events if isinstance(event, ProgressMessage)]


def test_a_write_succeeds_once_the_disk_takes_it(tmp_path: Path) -> None:
    target = tmp_path / "missing/file"
    threading.Timer(0.3, target.parent.mkdir).start()
    patience(tmp_path, 30).write(lambda: target.touch(), "the policy of step 3")
    assert target.exists()
    first, second = messages(tmp_path)
    assert first.startswith("cannot write the policy of step 3: ")
    assert "up to 30 s (`trainer.publish_timeout`)" in first
    assert second == "the policy of step 3 is written now"


async def test_a_disk_that_stays_full_is_an_error_with_its_option(tmp_path: Path) -> None:
    def fail() -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(WaitTimeout, match=r"room on the disk for the rollouts.*publish_timeout"):
        await patience(tmp_path, 0.05).write_async(fail, "the rollouts of step 3")


def test_what_is_no_fault_of_the_disk_is_not_tried_again(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        patience(tmp_path, 30).write(lambda: 1 / 0, "the policy of step 3")  # type: ignore[arg-type, return-value]
