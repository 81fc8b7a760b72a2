"""torchrun for the ranks of one machine: its agent, with a rendezvous that opens no port.

    python -P -m torchrl_ckpt.launcher.torchrun RANKS COMMAND [ARGUMENT ...]

`torchrun --standalone` serves a store on all interfaces and unpickles what anybody writes into it.
Here the agent, which is alone, keeps its store to itself, and the ranks find each other through a
file in a directory that only this user may enter. The exit code is that of the rank that failed
first, and there is no report besides: the log ends with the error of that rank.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

from torch.distributed import HashStore
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.elastic.rendezvous import (
    RendezvousHandler,
    RendezvousInfo,
    RendezvousParameters,
    RendezvousStoreInfo,
    rendezvous_handler_registry,
)
from torch.distributed.run import parse_args, run

from torchrl_ckpt.trainer.distributed import RENDEZVOUS_VARIABLE

_BACKEND = "one-machine"


class _OneMachine(RendezvousHandler):
    """The rendezvous of an agent that waits for no other one: it has a store in its memory."""

    def __init__(self, parameters: RendezvousParameters) -> None:
        self._run_id = parameters.run_id

    def get_backend(self) -> str:
        return _BACKEND

    def next_rendezvous(self) -> RendezvousInfo:
        # Workers get this address in their environment and do not use it.
        unused = RendezvousStoreInfo(master_addr="", master_port=0)
        return RendezvousInfo(HashStore(), rank=0, world_size=1, bootstrap_store_info=unused)

    def is_closed(self) -> bool:
        return False

    def set_closed(self) -> None:
        """Nobody else could join."""

    def num_nodes_waiting(self) -> int:
        return 0

    def get_run_id(self) -> str:
        return self._run_id

    def shutdown(self) -> bool:
        return True


def main() -> None:
    num_ranks, *command = sys.argv[1:]
    rendezvous_handler_registry.register(_BACKEND, _OneMachine)
    options = [f"--rdzv-backend={_BACKEND}", f"--nproc-per-node={num_ranks}", "--no-python"]
    # Only this user may enter such a directory (mode 0700).
    with tempfile.TemporaryDirectory(prefix="torchrl-ckpt-") as directory:
        os.environ[RENDEZVOUS_VARIABLE] = str(Path(directory) / "ranks")
        try:
            run(parse_args([*options, *command]))
        except ChildFailedError as error:
            _, failure = error.get_first_failure()
            # As in a shell, 128 + n stands for death by signal n.
            sys.exit(failure.exitcode if failure.exitcode > 0 else 128 - failure.exitcode)


if __name__ == "__main__":
    main()
