"""Compares a plugin's class with the contract of its kind, without calling anything of it."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

from torchrl_ckpt.contracts import (
    PLUGIN_API,
    CheckpointBackend,
    Engine,
    Environment,
    Kind,
    Loss,
    Model,
)

_CONTRACTS: dict[Kind, Any] = {
    "models": Model,
    "losses": Loss,
    "checkpoint_backends": CheckpointBackend,
    "environments": Environment,
    "engines": Engine,
}


def violations(kind: Kind, candidate: Any) -> list[str]:
    """What keeps `candidate` from being a plugin of `kind`: nothing, if it is one."""
    if not inspect.isclass(candidate):
        return [f"it is {candidate!r}, not a class"]
    api = getattr(candidate, "plugin_api", None)
    if api is None:
        return [f"it does not state `plugin_api = {PLUGIN_API}`"]
    if api != PLUGIN_API:
        return [f"it is written for plugin_api {api!r}, and this torchrl-ckpt has {PLUGIN_API}"]
    contract = _CONTRACTS[kind]
    return [*_missing_attributes(contract, candidate), *_missing_methods(contract, candidate)]


def _missing_attributes(contract: type, candidate: type) -> Iterator[str]:
    for base in _protocols(contract):
        for name in inspect.get_annotations(base):
            if not hasattr(candidate, name):
                yield f"it has no attribute `{name}`"


def _missing_methods(contract: type, candidate: type) -> Iterator[str]:
    for base in _protocols(contract):
        for name, member in vars(base).items():
            if not inspect.isfunction(member) or (name.startswith("_") and name != "__call__"):
                continue
            # Not `hasattr`: every class has a `__call__` from `type`, and one that derives from
            # the Protocol inherits its empty methods.
            owner = next((owner for owner in candidate.__mro__ if name in vars(owner)), base)
            if owner in contract.__mro__:
                yield f"it has no method `{name}`"
            elif not callable(getattr(candidate, name)):
                yield f"its `{name}` cannot be called"


def _protocols(contract: type) -> list[type]:
    """The contract and those it extends, without what `typing` puts below them."""
    return [base for base in contract.__mro__ if base.__module__ == contract.__module__]
