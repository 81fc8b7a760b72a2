"""Chooses the Python environment that an inference server runs in, and sets it up if need be.

Most engines run in the job's environment. An engine whose library conflicts with the job's packages
has a virtual environment of its own beside the job's: `.venv-vllm` beside `.venv`. It is set up on
first use. A stamp file, written last, records what it was made from; an environment without a stamp
or with a different one is set up again. The name of the directory also contains the distributions
of other plugins that the server needs, so that two recipes with different models do not set up the
same directory in turn.
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

from torchrl_ckpt.config.inference import InferenceConfig
from torchrl_ckpt.launcher.engine_env.installer import LOG, install_venv, installation_lock
from torchrl_ckpt.plugin_api.engines import EngineEnvironment, IsolatedEngine
from torchrl_ckpt.plugin_api.errors import EngineEnvironmentFailed
from torchrl_ckpt.registry.loading import load_plugin
from torchrl_ckpt.registry.lookup import find_plugin

_STAMP = "made-from.json"
_PROJECT = "torchrl-ckpt"


@dataclass(frozen=True)
class Requirement:
    """A distribution to install.

    `pip_arguments` are what `pip install` takes. `fingerprint` tells versions of its content apart
    that have the same version number: when it changes, an environment is out of date.
    """

    pip_arguments: tuple[str, ...]
    fingerprint: tuple[str, ...] = ()

    @classmethod
    def from_installed(cls, name: str, extra: str = "") -> Requirement:
        """Require the version of `name` that is installed here, from the same source.

        `extra` is the extra to install with it. Raises `EngineEnvironmentFailed` if it is not
        installed here.
        """
        copies = list(importlib.metadata.distributions(name=name))
        if not copies:
            raise EngineEnvironmentFailed(
                f"the engine's environment needs {name}, but it is not installed in {sys.prefix}, "
                "from where its version and source are taken: install it there with pip"
            )
        # A build leaves metadata in the source tree. They lack the origin and are passed over.
        installed = next((copy for copy in copies if copy.read_text("direct_url.json")), copies[0])
        in_extra = f'extra == "{extra}"'
        dependencies = [
            dependency
            for dependency in installed.requires or []
            if "extra ==" not in dependency or in_extra in dependency
        ]
        entry_points = [f"{e.group}: {e.name} = {e.value}" for e in installed.entry_points]
        fingerprint = sorted(dependencies + entry_points)
        origin = json.loads(installed.read_text("direct_url.json") or "null")
        if origin is not None and not _is_editable(origin):
            # The directory or file may have changed since, under the same version number.
            record = hashlib.sha256((installed.read_text("RECORD") or "").encode())
            fingerprint.append(f"RECORD: {record.hexdigest()}")
        pip_arguments = _pip_arguments(name, installed.version, extra, origin)
        return cls(pip_arguments, tuple(fingerprint))


def _pip_arguments(name: str, version: str, extra: str, origin: Any) -> tuple[str, ...]:
    """`origin` is PEP 610's record, or None for a package from an index."""
    name_with_extra = f"{name}[{extra}]" if extra else name
    if origin is None:
        return (f"{name_with_extra}=={version}",)
    if "dir_info" in origin:
        editable = ("--editable",) if _is_editable(origin) else ()
        directory = unquote(urlsplit(origin["url"]).path)
        return (*editable, f"{directory}[{extra}]" if extra else directory)
    vcs = origin.get("vcs_info")
    url = f"{vcs['vcs']}+{origin['url']}@{vcs['commit_id']}" if vcs else origin["url"]
    return (f"{name_with_extra} @ {url}",)


def _is_editable(origin: Any) -> bool:
    return bool(origin.get("dir_info", {}).get("editable"))


def server_python(config: InferenceConfig) -> Path:
    """Return the interpreter for the server of `config`; set up its environment first if need be.

    Raises `EngineEnvironmentFailed`.
    """
    engine = load_plugin("engines", config.engine.type)
    if not isinstance(engine.cls, IsolatedEngine):
        return Path(sys.executable)
    environment = engine.cls.environment()
    if importlib.util.find_spec(environment.module) is not None:
        return Path(sys.executable)
    engine_distribution = engine.found.distribution
    model_distribution = find_plugin("models", config.model.type).distribution
    extras = dict.fromkeys((_PROJECT, model_distribution), "")
    extras[engine_distribution] = environment.extra
    requirements = [Requirement.from_installed(name, extra) for name, extra in extras.items()]
    others = extras.keys() - {_PROJECT, engine_distribution}
    return ensure_venv(venv_directory(environment, others), environment, requirements)


def restart_with(python: Path) -> None:
    """Restart this command with the interpreter `python`, unless that runs it already."""
    if python != Path(sys.executable):
        command = python.with_name(Path(sys.argv[0]).name)
        os.execv(command, [str(command), *sys.argv[1:]])


def venv_directory(environment: EngineEnvironment, other_distributions: Collection[str]) -> Path:
    """Return the directory of `environment`, with `other_distributions` in its name.

    It is beside the virtual environment that this process runs in. Outside a virtual environment it
    is in the user's cache directory, one for each installation of Python.
    """
    name = "-".join([environment.name, *sorted(other_distributions)])
    if sys.prefix != sys.base_prefix:
        job_venv = Path(sys.prefix)
        return job_venv.with_name(f"{job_venv.name}-{name}")
    caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    python = hashlib.sha256(sys.prefix.encode()).hexdigest()[:8]
    return caches / "torchrl-ckpt" / f"env-{name}-{python}"


def ensure_venv(
    directory: Path, environment: EngineEnvironment, requirements: Sequence[Requirement]
) -> Path:
    """Return the interpreter of the environment in `directory`.

    The environment is set up again if it is missing, broken or out of date. Raises
    `EngineEnvironmentFailed`.
    """
    origins = {
        "python": sys.version,
        "directory": str(directory),
        "requirements": [asdict(requirement) for requirement in requirements],
        "unwanted": environment.unwanted,
    }
    expected_stamp = json.dumps(origins, indent=2)
    python = directory / "bin" / "python"
    stamp = directory / _STAMP
    console = Console(stderr=True, highlight=False)

    def is_usable() -> bool:
        return _read_if_there(stamp) == expected_stamp and _finds(python, environment.module)

    if is_usable():
        return python
    try:
        with installation_lock(directory, console) as lock:
            if is_usable():  # Another job has just set it up.
                return python
            console.print(
                f"setting up {directory} for the engine's {environment.module} (first use; takes a "
                "few minutes)",
                soft_wrap=True,
            )
            # First: a stamp must never stand for a directory that is partly removed.
            stamp.unlink(missing_ok=True)
            arguments = [word for needed in requirements for word in needed.pip_arguments]
            install_venv(directory, arguments, environment.unwanted, lock=lock, console=console)
            if not _finds(python, environment.module):
                raise EngineEnvironmentFailed(
                    f"{directory}: pip has installed everything, but Python does not find "
                    f"{environment.module} there; pip's output is in {directory / LOG}"
                )
            stamp.write_text(expected_stamp)
            console.print("  done")
    except OSError as error:
        raise EngineEnvironmentFailed(f"{directory} cannot be set up: {error}") from error
    return python


def _read_if_there(path: Path) -> str | None:
    try:
        return path.read_text()
    except (FileNotFoundError, NotADirectoryError):
        return None


def _finds(python: Path, module: str) -> bool:
    """Whether the interpreter `python` runs and finds `module`."""
    code = f"import importlib.util, sys; sys.exit(importlib.util.find_spec({module!r}) is None)"
    try:
        return subprocess.run([python, "-I", "-c", code], capture_output=True).returncode == 0
    except OSError:
        return False
