"""The rows of the fault harness's results: kept in a file, so that a run can be split and resumed,
and shown as a table."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True)
class Row:
    """What was done (`fault`), to what (`where`), how often, and every violation of an invariant.

    `setting` is the backend and the number of ranks.
    """

    fault: str
    setting: str
    where: str
    cases: int
    violations: list[str]
    seconds: float


class Rows:
    """Rows that are appended to a file, if there is one, as they are measured."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        lines = path.read_text().splitlines() if path and path.exists() else []
        self.rows = [Row(**json.loads(line)) for line in lines]

    def measure(self, fault: str, setting: str, where: str, run: Callable[[], Row]) -> Row | None:
        """Return the row that `run` measures, or None where it was measured before."""
        if any((row.fault, row.setting, row.where) == (fault, setting, where) for row in self.rows):
            return None
        row = run()
        self.rows.append(row)
        if self._path is not None:
            with self._path.open("a") as file:
                file.write(json.dumps(asdict(row)) + "\n")
        return row


def table(rows: Sequence[Row]) -> Iterator[str]:
    """Yield a table in Markdown with a line for each fault and setting, and the sums."""
    yield "| what was done | backend, ranks | where | cases | promises broken | minutes |"
    yield "|---|---|---|---:|---:|---:|"
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.fault, row.setting), []).append(row)
    for (fault, setting), group in groups.items():
        places = list(dict.fromkeys(row.where for row in group))
        where = places[0] if len(places) == 1 else f"{len(places)} situations"
        yield f"| {fault} | {setting} | {where} | {_sums(group)} |"
    kills = [row for row in rows if row.fault.startswith("SIGKILL")]
    yield f"| **kills in all** | | | {_sums(kills)} |"
    others = [row for row in rows if row not in kills and "bit" not in row.fault]
    yield f"| **other injected faults in all** | | | {_sums(others)} |"


def _sums(rows: Sequence[Row]) -> str:
    cases = sum(row.cases for row in rows)
    broken = sum(len(row.violations) for row in rows)
    return f"{cases:,} | {broken} | {sum(row.seconds for row in rows) / 60:.1f}"
