"""torchrun, but with the exit code of the rank that failed first, and without a report of its own.

    python -m torchrl_ckpt.launcher.torchrun --standalone --nproc-per-node=2 -m MODULE ...

The log then ends with the error of that rank.
"""

from __future__ import annotations

import sys

from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.run import parse_args, run


def main() -> None:
    try:
        run(parse_args(sys.argv[1:]))
    except ChildFailedError as error:
        _, failure = error.get_first_failure()
        # As in a shell, 128 + n stands for death by signal n.
        sys.exit(failure.exitcode if failure.exitcode > 0 else 128 - failure.exitcode)


if __name__ == "__main__":
    main()
