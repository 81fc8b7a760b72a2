"""The Python environment that an inference server runs in: the job's own, or one of the engine's.

An engine whose library does not get along with the job's packages has an environment beside the
job's: `.venv-vllm` beside `.venv`. It is made on first use, and is as good as its stamp, a file
that is written last and says what the environment was made from. A recipe whose model comes from
another distribution has another environment, so that two recipes never make the same one in turn.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from rich.console import Console

from torchrl_ckpt import registry
from torchrl_ckpt.config.inference import InferenceConfig
from torchrl_ckpt.launcher.engine_env import install
from torchrl_ckpt.plugin_api.engines import EngineEnvironment, IsolatedEngine
from torchrl_ckpt.plugin_api.errors import EngineEnvironmentFailed

_STAMP = "made-from.json"


@dataclass(frozen=True)
class Requirement:
    """A distribution as pip is told to install it, and what that brings along: where this changes,
    an environment is out of date."""

    arguments: tuple[str, ...]
    brings: tuple[str, ...] = ()

    @classmethod
    def like_here(cls, name: str, extra: str = "") -> Requirement:
        """The same version from the same place as in this environment, with `extra`.

        Raises `EngineEnvironmentFailed` where it is not installed.
        """
        copies = list(importlib.metadata.distributions(name=name))
        if not copies:
            raise EngineEnvironmentFailed(
                f"the engine's environment needs {name} from where it is installed here, but it is "
                f"not installed in {sys.prefix}: install it there with pip"
            )
        # A build leaves metadata in the source tree, which lack the origin and do not count.
        here = next((copy for copy in copies if copy.read_text("direct_url.json")), copies[0])
        in_extra = f'extra == "{extra}"'
        needs = [need for need in here.requires or [] if "extra ==" not in need or in_extra in need]
        entries = [f"{entry.group}: {entry.name} = {entry.value}" for entry in here.entry_points]
        origin = json.loads(here.read_text("direct_url.json") or "null")
        brings = sorted(needs + entries)
        if origin is not None and not _is_editable(origin):
            # The same directory or file may hold something else today under the same version.
            record = hashlib.sha256((here.read_text("RECORD") or "").encode())
            brings.append(f"RECORD: {record.hexdigest()}")
        return cls(_pip_arguments(name, here.version, extra, origin), tuple(brings))


def _pip_arguments(name: str, version: str, extra: str, origin: Any) -> tuple[str, ...]:
    """`origin` is PEP 610's record, or None for a package from an index."""
    wanted = f"{name}[{extra}]" if extra else name
    if origin is None:
        return (f"{wanted}=={version}",)
    if "dir_info" in origin:
        editable = ("--editable",) if _is_editable(origin) else ()
        directory = unquote(urlsplit(origin["url"]).path)
        return (*editable, f"{directory}[{extra}]" if extra else directory)
    vcs = origin.get("vcs_info")
    url = f"{vcs['vcs']}+{origin['url']}@{vcs['commit_id']}" if vcs else origin["url"]
    return (f"{wanted} @ {url}",)


def _is_editable(origin: Any) -> bool:
    return bool(origin.get("dir_info", {}).get("editable"))


def server_python(config: InferenceConfig) -> Path:
    """The interpreter for the server of `config`; its environment is made first if need be.

    Raises `EngineEnvironmentFailed`.
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
    further = extras.keys() - {"torchrl-ckpt", engine.found.distribution}
    return ready(place(environment, further), environment, requirements)


def enter(python: Path) -> None:
    """Begin this command anew with `python`, where that is another than runs it now."""
    if python != Path(sys.executable):
        command = python.with_name(Path(sys.argv[0]).name)
        os.execv(command, [str(command), *sys.argv[1:]])


def place(environment: EngineEnvironment, further: Collection[str]) -> Path:
    """The directory of `environment` with the distributions `further`, which are in its name.

    It is beside the virtual environment of this process; without one, among the user's caches, by
    the installation of Python that this is.
    """
    name = "-".join([environment.name, *sorted(further)])
    if sys.prefix != sys.base_prefix:
        own = Path(sys.prefix)
        return own.with_name(f"{own.name}-{name}")
    caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    python = hashlib.sha256(sys.prefix.encode()).hexdigest()[:8]
    return caches / "torchrl-ckpt" / f"env-{name}-{python}"


def ready(
    directory: Path, environment: EngineEnvironment, requirements: Sequence[Requirement]
) -> Path:
    """The interpreter of the environment in `directory`, made now if it is not as it should be.

    Raises `EngineEnvironmentFailed`.
    """
    origins = {
        "python": sys.version,
        "directory": str(directory),
        "requirements": [asdict(requirement) for requirement in requirements],
        "unwanted": environment.unwanted,
    }
    made_from = json.dumps(origins, indent=2)
    python = directory / "bin" / "python"
    stamp = directory / _STAMP
    console = Console(stderr=True, highlight=False)

    def is_made() -> bool:
        return _read(stamp) == made_from and _has(python, environment.module)

    if is_made():
        return python
    try:
        with install.only_one(directory, console) as lock:
            if is_made():
                return python
            console.print(
                f"setting up {directory} for the engine's {environment.module} (first use; takes a "
                "few minutes)",
                soft_wrap=True,
            )
            stamp.unlink(missing_ok=True)  # first, lest it speak for what is half removed
            arguments = [word for needed in requirements for word in needed.arguments]
            install.make(directory, arguments, environment.unwanted, lock=lock, console=console)
            if not _has(python, environment.module):
                raise EngineEnvironmentFailed(
                    f"{directory}: all was installed, but {environment.module} cannot be found in "
                    f"it; what pip did is in {directory / install.LOG}"
                )
            stamp.write_text(made_from)
            console.print("  done")
    except OSError as error:
        raise EngineEnvironmentFailed(f"{directory} cannot be set up: {error}") from error
    return python


def _read(stamp: Path) -> str | None:
    try:
        return stamp.read_text()
    except (FileNotFoundError, NotADirectoryError):
        return None


def _has(python: Path, module: str) -> bool:
    """Whether `python` runs and finds `module`."""
    code = f"import importlib.util, sys; sys.exit(importlib.util.find_spec({module!r}) is None)"
    try:
        return subprocess.run([python, "-I", "-c", code], capture_output=True).returncode == 0
    except OSError:
        return False
