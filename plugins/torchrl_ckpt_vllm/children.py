"""Ties vLLM's processes to the server: called by vLLM in each of them (`vllm.general_plugins`).

Without it a server that is killed leaves vLLM's engine behind, with all of its memory.
"""

from __future__ import annotations

import multiprocessing
import os
import signal

from torchrl_ckpt.plugin_api.parent_death import die_with_parent


def die_with_server() -> None:
    """Does nothing in the server itself, which decides whose end is its own."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return
    die_with_parent()
    if not parent.is_alive():  # it ended before the kernel knew of the wish
        os.kill(os.getpid(), signal.SIGKILL)
