"""A component's log has one format, without noise, secrets and endless repetition."""

from __future__ import annotations

import os
import re
import subprocess
import sys


def _log_of(code: str, **environment: str) -> str:
    program = f"import logging, warnings\nfrom torchrl_ckpt.run import logs\n{code}"
    return subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, **environment},
        stderr=subprocess.PIPE,
        text=True,
    ).stderr


def test_a_line_has_time_level_rank_and_source() -> None:
    log = _log_of("logs.configure(rank=1); logging.getLogger('a.b').info('step %d', 3)")
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d INFO    rank 1 a\.b: step 3\n", log)


def test_info_messages_of_noisy_libraries_are_dropped_and_their_warnings_are_not() -> None:
    log = _log_of(
        "logs.configure()\n"
        "logging.getLogger('httpx').info('HTTP Request: POST')\n"
        "logging.getLogger('uvicorn.access').info('GET /health')\n"
        "logging.getLogger('httpx').warning('retrying')\n"
        "warnings.warn('deprecated')"
    )
    assert "HTTP Request" not in log
    assert "/health" not in log
    assert "retrying" in log
    assert "py.warnings" in log


def test_no_secret_of_the_environment_is_logged() -> None:
    log = _log_of(
        "logs.configure()\n"
        "try: raise ValueError('Bearer s3cret-value')\n"
        "except ValueError: logging.exception('refused s3cret-value')",
        TORCHRL_CKPT_API_KEY="s3cret-value",
    )
    assert "s3cret-value" not in log
    assert "Bearer ***" in log


def test_a_crash_in_native_code_leaves_its_stack() -> None:
    log = _log_of("logs.configure(); import ctypes; ctypes.string_at(0)")
    assert "Segmentation fault" in log
    assert "string_at" in log


def test_a_message_that_comes_without_end_is_counted_and_others_are_not() -> None:
    log = _log_of(
        "logs.configure()\n"
        "server, other = logging.getLogger('server'), logging.getLogger('other')\n"
        "for n in range(10_000):\n"
        "    server.warning('bad request %d', n)\n"
        "    other.warning('%s', f'notice {n}') if n < 50 else None\n"
        "    other.info('step %d', n) if n < 100 else None\n"
        "server.error('something else')"
    )
    assert log.count("bad request") == 21
    assert "WARNING server: 9980 more like this in the last minute: bad request %d\n" in log
    assert log.count("notice") == 50
    assert log.count("step") == 100
    assert log.count("something else") == 1
