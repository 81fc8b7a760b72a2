"""Makes vLLM's processes end with the server: vLLM calls this in each (`vllm.general_plugins`).

Without it, a killed server would leave vLLM's engine running, with all of its memory.
"""

from __future__ import annotations

import multiprocessing
import os
import signal

from torchrl_ckpt.plugin_api.parent_death import die_with_parent


def die_with_server() -> None:
    """Kill this process when the server dies. Does nothing in the server itself."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return
    die_with_parent()
    if not parent.is_alive():  # it died before `die_with_parent` took effect
        os.kill(os.getpid(), signal.SIGKILL)
