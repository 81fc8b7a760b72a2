"""The Python environment that an inference server runs in: the job's own, or one of the engine's.

An engine whose library does not get along with the job's packages has an environment beside the
job's: `.venv-vllm` beside `.venv`. It is made on first use, and is as good as its stamp, a file
that is written last and says what the environment was made from.
"""

from __future__ import annotations

import fcntl
import importlib.metadata
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from rich.console import Console

from torchrl_ckpt import registry
from torchrl_ckpt.contracts import EngineEnvironment, IsolatedEngine
from torchrl_ckpt.errors import EnvironmentFailed
from torchrl_ckpt.recipe.schema import Inference

_STAMP = "made-from.json"
_LOG = "install.log"
_LINES_SHOWN = 20


@dataclass(frozen=True)
class Requirement:
    """A distribution as pip is told to install it, and what that brings along: where this changes,
    an environment is out of date."""

    arguments: tuple[str, ...]
    brings: tuple[str, ...] = ()

    @classmethod
    def like_here(cls, name: str, extra: str = "") -> Requirement:
        """The same version from the same place as in this environment, with `extra`."""
        copies = list(importlib.metadata.distributions(name=name))
        # A build leaves metadata in the source tree, which lack the origin and do not count.
        here = next((copy for copy in copies if copy.read_text("direct_url.json")), copies[0])
        in_extra = f'extra == "{extra}"'
        needs = [need for need in here.requires or [] if "extra ==" not in need or in_extra in need]
        entries = [f"{entry.group}: {entry.name} = {entry.value}" for entry in here.entry_points]
        origin = json.loads(here.read_text("direct_url.json") or "null")
        return cls(
            _pip_arguments(name, here.version, extra, origin), tuple(sorted(needs + entries))
        )


def _pip_arguments(name: str, version: str, extra: str, origin: Any) -> tuple[str, ...]:
    """`origin` is PEP 610's record, or None for a package from an index."""
    wanted = f"{name}[{extra}]" if extra else name
    if origin is None:
        return (f"{wanted}=={version}",)
    if "dir_info" in origin:
        editable = ("--editable",) if origin["dir_info"].get("editable") else ()
        directory = unquote(urlsplit(origin["url"]).path)
        return (*editable, f"{directory}[{extra}]" if extra else directory)
    vcs = origin.get("vcs_info")
    url = f"{vcs['vcs']}+{origin['url']}@{vcs['commit_id']}" if vcs else origin["url"]
    return (f"{wanted} @ {url}",)


def server_python(config: Inference) -> Path:
    """The interpreter for the server of `config`; its environment is made first if need be.

    Raises `EnvironmentFailed`.
    """
    engine = registry.load("engines", config.engine.type)
    if not isinstance(engine.cls, IsolatedEngine):
        return Path(sys.executable)
    environment = engine.cls.environment()
    if importlib.util.find_spec(environment.module) is not None:
        return Path(sys.executable)
    model = registry.find("models", config.model.type)
    extras = dict.fromkeys(("torchrl-ckpt", model.distribution), "")
    extras[engine.found.distribution] = environment.extra
    requirements = [Requirement.like_here(name, extra) for name, extra in extras.items()]
    return ready(_place(environment), environment, requirements)


def enter(python: Path) -> None:
    """Begin this command anew with `python`, where that is another than runs it now."""
    if python != Path(sys.executable):
        command = python.with_name(Path(sys.argv[0]).name)
        os.execv(command, [str(command), *sys.argv[1:]])


def ready(
    directory: Path, environment: EngineEnvironment, requirements: Sequence[Requirement]
) -> Path:
    """The interpreter of the environment in `directory`, made now if it is not as it should be.

    Raises `EnvironmentFailed`.
    """
    python = directory / "bin" / "python"
    origins = {
        "python": sys.version,
        "directory": str(directory),
        "requirements": [asdict(requirement) for requirement in requirements],
        "unwanted": environment.unwanted,
    }
    made_from = json.dumps(origins, indent=2)
    stamp = directory / _STAMP
    with _only_one(directory):
        if not (_read(stamp) == made_from and _has(python, environment.module)):
            say = Console(stderr=True, highlight=False)
            say.print(
                f"setting up {directory} for the engine's {environment.module} (first use; takes a "
                "few minutes)",
                soft_wrap=True,
            )
            _make(directory, python, requirements, environment.unwanted, say)
            if not _has(python, environment.module):
                raise EnvironmentFailed(
                    f"{directory}: all was installed, but {environment.module} cannot be found in "
                    f"it; what pip did is in {directory / _LOG}"
                )
            stamp.write_text(made_from)
            say.print("  done")
    return python


def _make(
    directory: Path,
    python: Path,
    requirements: Sequence[Requirement],
    unwanted: Sequence[str],
    say: Console,
) -> None:
    shutil.rmtree(directory, ignore_errors=True)
    _run([sys.executable, "-m", "venv", str(directory)], directory, say)
    pip = [str(python), "-m", "pip", "--disable-pip-version-check"]
    arguments = [word for requirement in requirements for word in requirement.arguments]
    _run([*pip, "install", "--progress-bar", "off", *arguments], directory, say)
    if unwanted:
        _run([*pip, "uninstall", "--yes", *unwanted], directory, say)


def _run(command: Sequence[str], directory: Path, say: Console) -> None:
    """Run `command` with its output in the log, and the latest line of it on a terminal."""
    directory.mkdir(parents=True, exist_ok=True)
    log = directory / _LOG
    tail: deque[str] = deque(maxlen=_LINES_SHOWN)
    with (
        open(log, "a") as file,
        say.status("") as status,
        subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
        ) as process,
    ):
        assert process.stdout is not None
        for line in process.stdout:
            file.write(line)
            tail.append(line.rstrip())
            status.update(line.strip()[: say.width - 4].replace("[", r"\["))
    if process.returncode != 0:
        shown = "\n".join(f"  | {line}" for line in tail)
        raise EnvironmentFailed(
            f"{directory} cannot be set up: `{' '.join(command)}` failed\n{shown}\n"
            f"all of its output: {log}"
        )


@contextmanager
def _only_one(directory: Path) -> Iterator[None]:
    """Hold the lock of `directory`, which two jobs may want to make at the same time."""
    directory.parent.mkdir(parents=True, exist_ok=True)
    parent = os.open(directory.parent, os.O_RDONLY)
    try:
        fcntl.flock(parent, fcntl.LOCK_EX)
        yield
    finally:
        os.close(parent)


def _place(environment: EngineEnvironment) -> Path:
    """Beside the virtual environment of this process; without one, among the user's caches."""
    if sys.prefix != sys.base_prefix:
        own = Path(sys.prefix)
        return own.with_name(f"{own.name}-{environment.name}")
    caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return caches / "torchrl-ckpt" / f"env-{environment.name}"


def _read(stamp: Path) -> str | None:
    try:
        return stamp.read_text()
    except FileNotFoundError:
        return None


def _has(python: Path, module: str) -> bool:
    """Whether `python` runs and finds `module`."""
    code = f"import importlib.util, sys; sys.exit(importlib.util.find_spec({module!r}) is None)"
    try:
        return subprocess.run([python, "-I", "-c", code], capture_output=True).returncode == 0
    except OSError:
        return False
