"""Logging of a component's process: one format on standard error, without noise and secrets.

The launcher redirects a component's output into `logs/attempt_N/<component>.log`.
"""

from __future__ import annotations

import faulthandler
import logging
import os

from torchrl_ckpt.config.variables import redacted

_NOISY_LOGGERS = ("httpx", "httpcore", "uvicorn.access", "urllib3", "filelock")


def configure(rank: int | None = None) -> None:
    """Configure the root logger of this process. Call it before importing transformers.

    `rank`, if given, is shown in every line. A crash in native code logs its stack as well.
    """
    prefix = "" if rank is None else f"rank {rank} "
    handler = logging.StreamHandler()
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


class _RedactingFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return redacted(super().format(record))
