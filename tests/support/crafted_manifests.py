"""Manifests that somebody else has written, each with a seal that fits: nobody has a secret to make
one with."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import xxhash

from torchrl_ckpt.checkpoint.layout import MANIFEST

Edit = Callable[[dict[str, Any]], Any]


def edit_manifest(checkpoint: Path, edit: Edit) -> None:
    """Change the manifest of `checkpoint` and seal it anew."""
    content = json.loads((checkpoint / MANIFEST).read_text())
    del content["seal"]
    edit(content)
    seal = xxhash.xxh3_128_hexdigest(json.dumps(content, sort_keys=True).encode())
    sealed = {**content, "seal": seal}
    (checkpoint / MANIFEST).write_text(json.dumps(sealed, indent=1, sort_keys=True) + "\n")


def _named(path: object) -> Edit:
    return lambda content: content["files"][0].update(path=path)


def _with(**values: object) -> Edit:
    return lambda content: content.update(values)


ODD_FIELDS: dict[str, Edit] = {
    "no step": lambda content: content.pop("step"),
    "another step than the directory's": _with(step=77),
    "a path for a step": _with(step="../../elsewhere/step_2"),
    "a step below zero": _with(step=-1),
    "a step that is no number": _with(step=True),
    "a step of a thousand digits": _with(step=10**1000),
    "no files": lambda content: content.pop("files"),
    "files of another type": _with(files={"a": 1}),
    "a file without a digest": lambda content: content["files"][0].pop("digest"),
    "a file with one field more": lambda content: content["files"][0].update(mode=0),
    "a file of no length": lambda content: content["files"][0].update(size=None),
    "a file of a length below zero": lambda content: content["files"][0].update(size=-5),
    "a file above": _named("../stolen"),
    "a file far above": _named("trainer/../../../stolen"),
    "a file elsewhere": _named("/etc/passwd"),
    "a file called nothing": _named(""),
    "a file with a zero byte": _named("a\0b"),
    "a file with half a character": _named("\ud800"),
    "a file that moves the cursor": _named("\x1b[2J"),
    "a file that is a number": _named(3),
    "a file twice": lambda content: content["files"].append(content["files"][0]),
    "the manifest itself": _named(MANIFEST),
    "no parts": lambda content: content.pop("parts"),
    "a part above": _with(parts=["../trainer"]),
    "a part that is a path": _with(parts=["a/b"]),
    "a part that is a number": _with(parts=[1]),
    "no time": lambda content: content.pop("created"),
    "a time after the last": _with(created=1e300),
    "an infinite time": _with(created=float("inf")),
    "a time in words": _with(created="today"),
    "plugins of another type": _with(plugins=[1]),
    "progress of another type": _with(progress="far"),
    "a command that is a list": _with(command=[]),
    "a recipe that is a list": _with(recipe=[]),
}
"""By what is odd: what makes a manifest so."""

ODD_TEXTS: dict[str, str] = {
    "empty": "",
    "a number": "7",
    "a list": "[]",
    "no field": "{}",
    "only a seal": '{"seal": "x"}',
    "nested a thousand deep": "[" * 1000 + "]" * 1000,
    "nested a million deep": '{"a":' * 1_000_000,
    "a number of a million digits": '{"step": ' + "9" * 1_000_000 + "}",
    "half a text": '{"step": "',
}
"""By what is odd: all of a manifest."""
