"""Text of files that somebody else may have made, for the terminal."""

from __future__ import annotations

import re

# Beginnings of escape sequences among them; and what turns the direction of the text.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def harmless(text: str) -> str:
    """`text` with its control characters written out, but for line feeds and tabs.

    A terminal executes them: they move the cursor, hide lines, and set titles and clipboards.
    """
    return _CONTROL.sub(lambda match: ascii(match[0])[1:-1], text)
