"""Logging of a component's process: one format on standard error, without noise and secrets.

The launcher redirects a component's output into `logs/attempt_N/<component>.log`.
"""

from __future__ import annotations

import faulthandler
import logging
import os
import time
from collections import defaultdict

from torchrl_ckpt.config.variables import redacted

# Of one kind of warning or error within this time, so many are written.
_FOLD_SECONDS = 60.0
_UNFOLDED = 20

_NOISY_LOGGERS = ("httpx", "httpcore", "uvicorn.access", "urllib3", "filelock")


def configure(rank: int | None = None) -> None:
    """Configure the root logger of this process. Call it before importing transformers.

    `rank`, if given, is shown in every line. A crash in native code logs its stack as well. Of
    warnings and errors that clients may cause without end, most are only counted.
    """
    prefix = "" if rank is None else f"rank {rank} "
    handler = _FoldingHandler()
    handler.setFormatter(
        _RedactingFormatter(
            f"%(asctime)s %(levelname)-7s {prefix}%(name)s: %(message)s", "%Y-%m-%d %H:%M:%S"
        )
    )
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    logging.captureWarnings(True)
    for name in _NOISY_LOGGERS:
        logging.getLogger(name).setLevel(logging.WARNING)
    os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
    faulthandler.enable()


class _FoldingHandler(logging.StreamHandler):  # type: ignore[type-arg]
    """Writes 20 records a minute of each kind, and how many more there were once the minute is over
    and anything is logged, or the process ends. A kind is a logger's message without its arguments.
    """

    def __init__(self) -> None:
        super().__init__()
        self._began = time.monotonic()
        self._counts: defaultdict[tuple[str, str], int] = defaultdict(int)

    def emit(self, record: logging.LogRecord) -> None:
        if time.monotonic() - self._began > _FOLD_SECONDS:
            self._write_counts()
        if record.levelno >= logging.WARNING:
            # Of "%s", such as for Python's own warnings, the argument is the message.
            message = record.getMessage() if record.msg == "%s" else str(record.msg)
            kind = record.name, message
            self._counts[kind] += 1
            if self._counts[kind] > _UNFOLDED:
                return
        super().emit(record)

    def close(self) -> None:
        self._write_counts()
        super().close()

    def _write_counts(self) -> None:
        counts, self._counts = self._counts, defaultdict(int)
        self._began = time.monotonic()
        for (name, message), count in counts.items():
            if count > _UNFOLDED:
                text = f"{count - _UNFOLDED} more like this in the last minute: {message}"
                super().emit(logging.LogRecord(name, logging.WARNING, "", 0, text, None, None))


class _RedactingFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return redacted(super().format(record))
