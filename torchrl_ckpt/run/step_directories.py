"""Directories `step_N` that one process of a run writes and another one reads."""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from torchrl_ckpt.plugin_api.durable_files import fsync_directory, fsync_tree, make_directory
from torchrl_ckpt.plugin_api.errors import CheckpointDamaged
from torchrl_ckpt.plugin_api.untrusted_files import open_regular

_OWN_NAME = re.compile(r"step_(0|[1-9]\d*)")
_LEFTOVER = re.compile(r"\.step_\d+(\.replaced)?\.tmp")

_log = logging.getLogger(__name__)


class StepDirectories:
    """The directories `step_N` in `root`. Each appears whole and durable, by one rename.

    Other names there are somebody else's: they are left alone.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._warned: set[Path] = set()

    def path(self, step: int) -> Path:
        return self.root / f"step_{step}"

    def steps(self) -> list[int]:
        """The steps that have a directory, in no order."""
        paths = self.root.iterdir() if self.root.exists() else ()
        matches = (_OWN_NAME.fullmatch(path.name) for path in paths if path.is_dir())
        return [int(match[1]) for match in matches if match]

    def clear_leftovers(self) -> None:
        """Create `root` if need be, remove what a killed process left, warn of other names."""
        make_directory(self.root)
        for name in sorted(os.listdir(self.root)):
            path = self.root / name
            if _LEFTOVER.fullmatch(name):
                _remove(path)
            elif not (_OWN_NAME.fullmatch(name) and path.is_dir()):
                self._warn(path, "does not belong to the run, and is left alone")

    @contextmanager
    def new(self, step: int) -> Iterator[Path]:
        """Yield an empty directory to write the files of `step` into.

        When the block ends it is made durable and gets its name, in place of an earlier directory
        of the step. If the block or that fails, nothing of it is left.
        """
        temporary = self.root / f".step_{step}.tmp"
        _remove(temporary)
        temporary.mkdir(parents=True)
        try:
            yield temporary
            fsync_tree(temporary)
            self._show(step, temporary)
        except BaseException:
            _remove(temporary)
            raise

    def _show(self, step: int, temporary: Path) -> None:
        # A directory must not be read while it is deleted: it is renamed first.
        replaced = self.root / f".step_{step}.replaced.tmp"
        _remove(replaced)
        if self.path(step).exists():
            os.rename(self.path(step), replaced)
        os.rename(temporary, self.path(step))
        fsync_directory(self.root)
        _remove(replaced)

    def read_json(self, step: int, name: str) -> dict[str, Any] | None:
        """Return the object in the file `name` of `step`; None if there is no such file.

        A file that a power failure or a person has left without one is named once in a warning.
        """
        path = self.path(step) / name
        try:
            content = json.loads(path.read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, ValueError, RecursionError):
            content = None
        if not isinstance(content, dict):
            self.warn_unreadable(step, name)
            return None
        return content

    def warn_unreadable(self, step: int, name: str) -> None:
        """Say, once, that the file `name` of `step` does not hold what this program writes."""
        self._warn(self.path(step) / name, "cannot be read, so the directory is skipped")

    def _warn(self, path: Path, what: str) -> None:
        if path not in self._warned:
            self._warned.add(path)
            _log.warning("%s %s", path, what)


def copy_carried(source: Path, target: Path) -> None:
    """Copy a file that a checkpoint carries, which somebody else may have made.

    It must be a regular file: a link may lead anywhere, and a device has no end. Raises
    `CheckpointDamaged`, and `OSError` where the disk refuses the copy.
    """
    with ExitStack() as files:
        try:
            carried = files.enter_context(open_regular(source))
        except OSError as error:
            raise CheckpointDamaged(f"{source} cannot be read ({error.strerror})") from None
        shutil.copyfileobj(carried, files.enter_context(open(target, "wb")))


def _remove(path: Path) -> None:
    """Remove a directory or a file, as far as that is possible."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
