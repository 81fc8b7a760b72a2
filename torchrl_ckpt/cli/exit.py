"""The one place where an error becomes a message and an exit code."""

from __future__ import annotations

import os
import sys
import textwrap
from collections.abc import Callable

from torchrl_ckpt.plugin_api.errors import UserError


def exit_code_of(action: Callable[[], int | None]) -> int:
    """Run `action`: 0 or what it returns, or the code of the `UserError` that it raises.

    Everything else is a bug and keeps its traceback.
    """
    try:
        return action() or 0
    except UserError as error:
        # Indented, so that whoever reads it from a log knows where the message ends.
        print(textwrap.indent(f"error: {error}", "  ")[2:], file=sys.stderr, flush=True)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # Nobody reads any more, as behind `| head`; what is still buffered must not complain too.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
