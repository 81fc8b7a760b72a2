"""The building blocks of the sections of a recipe.

Each option is documented where it is declared. A section that can be off is `Section | None`. A
table that names a plugin is a `PluginTable` annotated with the kind. A relative `Path` is relative
to the file that gives it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

from torchrl_ckpt.plugin_api.plugin import Kind

PositiveInt = Annotated[int, Field(ge=1)]
Count = Annotated[int, Field(ge=0)]
Seconds = Annotated[float, Field(gt=0)]


@dataclass(frozen=True)
class PluginKind:
    """Marks a `PluginTable` with the kind of plugin that its `type` names."""

    kind: Kind


@dataclass(frozen=True)
class NamesVariable:
    """Marks text that is the name of an environment variable (`config/variables.py`)."""


VariableName = Annotated[str, NamesVariable()]


class PluginTable(BaseModel):
    """A plugin's name as `type`, and its options beside it."""

    model_config = ConfigDict(extra="allow", frozen=True)

    type: str

    @model_validator(mode="before")
    @classmethod
    def _from_name(cls, value: Any) -> Any:
        """Read `loss = "grpo"`, which is short for `loss.type = "grpo"`."""
        return {"type": value} if isinstance(value, str) else value

    @property
    def options(self) -> dict[str, Any]:
        """The plugin's own options."""
        return dict(self.model_extra or {})


class Section(BaseModel):
    """A table of the recipe. Unknown keys are errors; the docstrings of the fields are the help."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, protected_namespaces=()
    )


ModelTable = Annotated[PluginTable, PluginKind("models")]
LossTable = Annotated[PluginTable, PluginKind("losses")]
BackendTable = Annotated[PluginTable, PluginKind("checkpoint_backends")]
EnvironmentTable = Annotated[PluginTable, PluginKind("environments")]
EngineTable = Annotated[PluginTable, PluginKind("engines")]
