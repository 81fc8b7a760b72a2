"""The log of a component's process: one readable form on standard error, less noise, no secrets.

The runner redirects a component's output into `logs/attempt_N/<component>.log`.
"""

from __future__ import annotations

import faulthandler
import logging
import os
import re

_SECRET_NAME = re.compile(r"(KEY|TOKEN|SECRET|PASSWORD)$", re.IGNORECASE)
_SHORTEST_SECRET = 8
_NOISY = ("httpx", "httpcore", "uvicorn.access", "urllib3", "filelock")


def configure(rank: int | None = None) -> None:
    """Set up the root logger of this process. Call it before importing transformers.

    `rank` is shown in every line where there are several. A crash in native code leaves its stack
    in the log as well.
    """
    place = "" if rank is None else f"rank {rank} "
    handler = logging.StreamHandler()
    handler.setFormatter(
        _Discreet(f"%(asctime)s %(levelname)-7s {place}%(name)s: %(message)s", "%Y-%m-%d %H:%M:%S")
    )
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    logging.captureWarnings(True)
    for name in _NOISY:
        logging.getLogger(name).setLevel(logging.WARNING)
    os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
    faulthandler.enable()


class _Discreet(logging.Formatter):
    """Hides the values of environment variables that are named like secrets."""

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        for name, value in os.environ.items():
            if len(value) >= _SHORTEST_SECRET and _SECRET_NAME.search(name):
                text = text.replace(value, "***")
        return text
