"""What a resumed run does otherwise than the one that saved the checkpoint, and whether it may."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torchrl_ckpt import registry
from torchrl_ckpt.checkpoint.manifest import Manifest
from torchrl_ckpt.plugin_api.errors import CheckpointMismatch, UserError
from torchrl_ckpt.plugin_api.plugin import Json

_ABSENT = object()

# What a key's change makes impossible. Keys are those of either kind of recipe.
_REFUSED = {
    "seed": "the data would come in another order, and samples would be skipped or repeated",
    "orchestrator.seed": "problems would be skipped or repeated",
    "orchestrator.async_level": "the batches under way would not fit",
}

# What may change without a word: it is this start's affair, or what one resumes for.
_SILENT = (
    "attempt",
    "ckpt",
    "data.num_workers",
    "export_weights",
    "max_steps",
    "orchestrator.attempt",
    "orchestrator.ckpt",
    "orchestrator.client.api_key_env",
    "orchestrator.client.base_url",
    "orchestrator.client.base_urls",
    "orchestrator.client.canary_tolerance",
    "orchestrator.client.timeout",
    "orchestrator.evaluation",
    "orchestrator.max_steps",
    "orchestrator.model",
    "orchestrator.output_dir",
    "orchestrator.policy_timeout",
    "output_dir",
    "trainer.attempt",
    "trainer.ckpt",
    "trainer.export_weights",
    "trainer.max_steps",
    "trainer.model",  # A warm start names a directory, a resume does not need it.
    "trainer.output_dir",
    "trainer.rollout_timeout",
    "trainer.seed",
    "trainer.warm_start",
    "warm_start",
)

_MEANING = {
    "data": "what comes next is other data than the uninterrupted run would have seen",
    "model": "the tensors must fit, and what is computed with them may differ",
    "orchestrator.environment": "what comes next are other problems",
    "ranks": "the state is the same to the bit, but sums are done in another order from here on",
    "threads": "sums may be done in another order from here on",
}


@dataclass(frozen=True)
class Change:
    """A key of the recipe that is not as it was."""

    key: str
    before: Any
    now: Any

    def __str__(self) -> str:
        return f"`{self.key}` was {_shown(self.before)} and is {_shown(self.now)} now"


def notes_on_resume(manifest: Manifest, recipe: Json) -> list[str]:
    """What to tell the user about going on from `manifest` with `recipe` (as JSON).

    Raises `CheckpointMismatch`, naming the key, where it cannot work.
    """
    before, recipe = manifest.about["recipe"], dict(recipe)
    if ("trainer" in before) != ("trainer" in recipe):
        kind = "reinforcement learning" if "trainer" in before else "supervised fine-tuning"
        raise CheckpointMismatch(f"the checkpoint of step {manifest.step} is one of {kind}")
    old, new = (one.get("trainer", one) for one in (before, recipe))
    saved_by, loaded_by = (one["ckpt"]["backend"]["type"] for one in (old, new))
    if saved_by != loaded_by and not _reads(loaded_by, saved_by):
        raise CheckpointMismatch(
            f"cannot resume from step {manifest.step}: `ckpt.backend` was {saved_by!r}, which "
            f"wrote it, and is {loaded_by!r} now. Use the old value"
        )
    changes = list(_changes(_without_root_keys(before), _without_root_keys(recipe)))
    for change in changes:
        if change.key in _REFUSED:
            raise CheckpointMismatch(
                f"cannot resume from step {manifest.step}: {change}; {_REFUSED[change.key]}. "
                "Use the old value, or start a new run from the weights"
            )
    spoken = [change for change in changes if not _is_below(change.key, _SILENT)]
    return [*_note_on_schedule(before, recipe), *(_note(change) for change in spoken)]


def _reads(reader: str, writer: str) -> bool:
    """Whether one checkpoint backend reads the files of another, which may not be installed."""
    try:
        one, other = (registry.load("checkpoint_backends", name).cls for name in (reader, writer))
    except UserError:
        return False
    return bool(one.file_format == other.file_format)


def _without_root_keys(recipe: Json) -> Json:
    """The sections alone where there are any: the root's shared keys have reached them."""
    sections = {name: recipe[name] for name in ("trainer", "orchestrator") if name in recipe}
    return sections or recipe


def _note(change: Change) -> str:
    for key, meaning in _MEANING.items():
        if _is_below(change.key.removeprefix("trainer."), (key,)):
            return f"{change}: {meaning}"
    return f"{change}: it counts from the next step on"


def _note_on_schedule(before: Json, now: Json) -> Iterator[str]:
    """A decay that ends at `max_steps` is another one when `max_steps` is."""
    old, new = before.get("trainer", before), now.get("trainer", now)
    schedule = new["scheduler"]
    depends = schedule["name"] != "constant" and schedule["decay_steps"] is None
    if depends and old["max_steps"] != new["max_steps"]:
        yield (
            f"`max_steps` was {old['max_steps']} and is {new['max_steps']} now, and the learning "
            "rate decays until then: the steps so far followed another schedule than those of a "
            f"run of {new['max_steps']} steps. `scheduler.decay_steps` makes it independent"
        )


def _changes(before: Json, now: Json, key: str = "") -> Iterator[Change]:
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        for name in [*before, *(name for name in now if name not in before)]:
            inner = f"{key}.{name}" if key else name
            yield from _changes(before.get(name, _ABSENT), now.get(name, _ABSENT), inner)
    elif before != now:
        yield Change(key, before, now)


def _is_below(key: str, sections: tuple[str, ...]) -> bool:
    return any(key == section or key.startswith(f"{section}.") for section in sections)


def _shown(value: Any) -> str:
    return "unset" if value is None or value is _ABSENT else repr(value)
