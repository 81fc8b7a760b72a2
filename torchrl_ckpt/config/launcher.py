"""`[launcher]`: how the processes of a job are watched."""

from __future__ import annotations

from torchrl_ckpt.config.section import Seconds, Section


class LauncherConfig(Section):
    """How the processes of a job are watched."""

    stall_timeout: Seconds | None = 600.0
    """How long a process may show no progress, in seconds. Then its stacks are written into its
    log, and the run ends, naming it; a server or a writer of checkpoints is replaced. It must be
    longer than the longest single operation, such as the export of the weights. Off: a process that
    hangs is waited for until another limit passes."""
