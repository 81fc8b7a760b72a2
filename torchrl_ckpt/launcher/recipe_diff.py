"""Compares a resumed run's recipe with the checkpoint's: what has changed, and whether it may."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torchrl_ckpt.checkpoint.layout import MANIFEST
from torchrl_ckpt.checkpoint.manifest import Manifest
from torchrl_ckpt.checkpoint.stored_json import checked
from torchrl_ckpt.config.section import PluginTable
from torchrl_ckpt.plugin_api.errors import CheckpointMismatch, UserError
from torchrl_ckpt.plugin_api.plugin import Json
from torchrl_ckpt.registry.loading import load_plugin
from torchrl_ckpt.run.resolved import recipe_sections

_UNSET = object()

_MAX_VALUE_LENGTH = 200

# Options are named as a user of the command writes them: those of `sft` have no prefix.

# Changes that make an exact resume impossible, and why.
_REFUSED = {
    "seed": "the data would come in another order, and samples would be skipped or repeated",
    "orchestrator.seed": "problems would be skipped or repeated",
    "orchestrator.async_level": "the batches in flight would not fit",
}

# Changes that need no note: options of this start alone, and what a run is resumed to change.
_NOT_NOTED = (
    "ckpt",
    "collective_timeout",
    "data.num_workers",
    "export_weights",
    "launcher",
    "max_steps",
    "orchestrator.ckpt",
    "orchestrator.client.api_key_env",
    "orchestrator.client.base_url",
    "orchestrator.client.base_urls",
    "orchestrator.client.canary_tolerance",
    "orchestrator.client.timeout",
    "orchestrator.evaluation",
    "orchestrator.launcher",
    "orchestrator.max_steps",
    "orchestrator.model",
    "orchestrator.output_dir",
    "orchestrator.policy_timeout",
    "orchestrator.publish_timeout",
    "output_dir",
    "publish_timeout",
    "trainer.ckpt",
    "trainer.collective_timeout",
    "trainer.export_weights",
    "trainer.launcher",
    "trainer.max_steps",
    "trainer.output_dir",
    "trainer.publish_timeout",
    "trainer.rollout_timeout",
    "trainer.seed",
    "trainer.warm_start",
)

_CONSEQUENCES = {
    "data": "the data from here on differ from what the uninterrupted run would have seen",
    "model": "the tensors must fit, and what is computed with them may differ",
    "orchestrator.environment": "the problems from here on differ",
    "ranks": (
        "the state is the same to the bit, but sums are computed in another order from here on"
    ),
    "threads": "sums may be computed in another order from here on",
}


@dataclass(frozen=True)
class Change:
    """An option that differs from the checkpoint's recipe."""

    option: str
    before: Any
    now: Any

    def __str__(self) -> str:
        return f"`{self.option}` was {_shown(self.before)} and is {_shown(self.now)} now"


def notes_on_resume(manifest: Manifest, command: str, recipe: Json) -> list[str]:
    """What to tell the user about resuming from `manifest` by `command` with `recipe` (as JSON).

    Only components that both recipes configure are compared. Raises `CheckpointMismatch`, naming
    the option, where the resume cannot work, and `CheckpointDamaged` for an odd recipe in the
    manifest.
    """
    saved_by = manifest.metadata["command"]
    if (saved_by == "sft") != (command == "sft"):
        kind = "supervised fine-tuning" if saved_by == "sft" else "reinforcement learning"
        raise CheckpointMismatch(
            f"the checkpoint of step {manifest.step} is one of {kind}, so `{command}` cannot "
            "resume from it"
        )
    before, now = manifest.recipe_sections, recipe_sections(command, recipe)
    if "trainer" in now:
        _check_backend(manifest, now["trainer"])
    changes = [
        change
        for component in before
        if component in now
        for change in _changes(
            before[component], now[component], "" if command == "sft" else component
        )
    ]
    for change in changes:
        if change.option in _REFUSED:
            raise CheckpointMismatch(
                f"cannot resume from step {manifest.step}: {change}; {_REFUSED[change.option]}. "
                "Use the old value, or start a new run from the weights"
            )
    notes = [_note(change) for change in changes if _is_noted(change)]
    if "trainer" in now:
        notes = [*_note_on_schedule(before["trainer"], now["trainer"]), *notes]
    return notes


def _check_backend(manifest: Manifest, now: Json) -> None:
    """Raise `CheckpointMismatch` where the backend of `now` cannot read the files."""
    stored = manifest.trainer_recipe["ckpt"]["backend"]
    writer = checked(stored, PluginTable, Path(MANIFEST)).type
    reader = (now["ckpt"] or {"backend": {"type": "dcp"}})["backend"]["type"]
    if writer != reader and not _can_read(reader, writer):
        raise CheckpointMismatch(
            f"cannot resume from step {manifest.step}: `ckpt.backend` was {writer!r}, which "
            f"wrote it, and is {reader!r} now. Use the old value"
        )


def _can_read(reader: str, writer: str) -> bool:
    """Whether one backend reads the files of another, which may not be installed any more."""
    try:
        formats = [
            load_plugin("checkpoint_backends", name).cls.file_format for name in (reader, writer)
        ]
    except UserError:
        return False
    return bool(formats[0] == formats[1])


def _is_noted(change: Change) -> bool:
    if _is_in_section(change.option, ("trainer.model",)):
        # A warm start names a directory and nothing else, and a resume does not need it.
        given = change.before is not _UNSET and change.now is not _UNSET
        return given and change.option != "trainer.model.name"
    return not _is_in_section(change.option, _NOT_NOTED)


def _note(change: Change) -> str:
    if change.now is _UNSET:  # Such as an option that this version does not have.
        return f"{change}: it has no effect any more"
    for option, consequence in _CONSEQUENCES.items():
        if _is_in_section(change.option.removeprefix("trainer."), (option,)):
            return f"{change}: {consequence}"
    return f"{change}: it applies from the next step on"


def _note_on_schedule(before: Json, now: Json) -> Iterator[str]:
    """A decay that ends at `max_steps` changes with it."""
    schedule = now["scheduler"]
    depends = schedule["name"] != "constant" and schedule["decay_steps"] is None
    max_steps = before.get("max_steps")
    if depends and max_steps != now["max_steps"]:
        yield (
            f"`max_steps` was {_shown(max_steps)} and is {now['max_steps']} now, and the "
            "learning rate decays until then: the steps so far followed another schedule than "
            f"those of a run of {now['max_steps']} steps. `scheduler.decay_steps` makes the "
            "schedule independent of `max_steps`"
        )


def _changes(before: Json, now: Json, option: str) -> Iterator[Change]:
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        for name in [*before, *(name for name in now if name not in before)]:
            inner = f"{option}.{name}" if option else name
            yield from _changes(before.get(name, _UNSET), now.get(name, _UNSET), inner)
    elif before != now:
        yield Change(option, before, now)


def _is_in_section(option: str, sections: tuple[str, ...]) -> bool:
    return any(option == section or option.startswith(f"{section}.") for section in sections)


def _shown(value: Any) -> str:
    if value is None or value is _UNSET:
        return "unset"
    text = repr(value)
    return text if len(text) <= _MAX_VALUE_LENGTH else f"{text[:_MAX_VALUE_LENGTH]}…"
