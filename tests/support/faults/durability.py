"""What a power failure could still take away: a kill does not show it, the order of calls does."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import PurePosixPath

from tests.support.faults.strace import MAKES, OPENS, RENAMES, RESIZES, SYNCS, WRITES, Call


def not_durable(calls: Iterable[Call]) -> set[str]:
    """The files whose bytes, and the directories whose names, were changed and not synced since.

    A name that goes away does no harm if it is back after a power failure, so removals do not
    count. A rename counts for the directory that it starts from; none here leaves its directory.
    """
    changed: set[str] = set()
    for call in calls:
        if call.name in WRITES + RESIZES:
            changed.add(call.path)
        elif call.name in OPENS + MAKES + RENAMES:
            changed.add(str(PurePosixPath(call.path).parent))
        elif call.name in SYNCS:
            changed.discard(call.path)
    return changed
