"""Turns an error into a message and an exit code, for all commands and components."""

from __future__ import annotations

import errno
import os
import sys
import textwrap
from collections.abc import Callable

from torchrl_ckpt.cli.terminal import harmless
from torchrl_ckpt.config.variables import redacted
from torchrl_ckpt.plugin_api.errors import RunInterrupted, UserError

# The machine has run out of something: not a bug of this program.
_SHORTAGES = (errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE)


def exit_code_of(action: Callable[[], int | None]) -> int:
    """Call `action` and return its exit code (None: 0), or that of the `UserError` it raises.

    The error's message is printed to standard error, without secrets, as is that of a full disk or
    of too many open files. A stop that was requested is not called an error. Any other exception is
    a bug and is raised further, with its traceback.
    """
    try:
        return action() or 0
    except RunInterrupted as stop:
        print(stop, file=sys.stderr, flush=True)
        return stop.exit_code
    except UserError as error:
        # Later lines are indented: the supervisor, which reads the log, finds the message's end.
        message = harmless(redacted(f"error: {error}"))
        print(textwrap.indent(message, "  ")[2:], file=sys.stderr, flush=True)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader has gone, as with `| head`. Flushing the buffer at exit must not fail as well.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        if error.errno not in _SHORTAGES:
            raise
        place = f": {error.filename}" if error.filename else ""
        print(f"error: {error.strerror}{place}", file=sys.stderr, flush=True)
        return UserError.exit_code
