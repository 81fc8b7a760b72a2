"""A recipe's table becomes the plugin's `Config`, and what does not fit is told."""

from __future__ import annotations

import pytest

from torchrl_ckpt.plugin_api.errors import DataError, PluginBroken, RecipeError
from torchrl_ckpt.registry import Option, config_class, create, load

IMPORTS = """
import pydantic.dataclasses
from dataclasses import dataclass, field
from typing import Annotated
from pydantic import BaseModel, ConfigDict, Field
from torchrl_ckpt.plugin_api.errors import DataError
"""

CONFIGS = {
    "dataclass": """
@dataclass(frozen=True)
class AcmeConfig:
    rate: Annotated[float, Field(ge=0, description="How much.")]
    name: str | None = field(default=None, metadata={"description": "Of what."})
""",
    "pydantic model": """
class AcmeConfig(BaseModel):
    model_config = ConfigDict(use_attribute_docstrings=True)

    rate: Annotated[float, Field(ge=0)]
    '''How much.'''
    name: str | None = None
    '''Of
    what.'''
""",
    "pydantic dataclass": """
@pydantic.dataclasses.dataclass(config=ConfigDict(use_attribute_docstrings=True))
class AcmeConfig:
    rate: Annotated[float, Field(ge=0)]
    '''How much.'''
    name: str | None = None
    '''Of what.'''
""",
}

LOSS = """
class Acme:
    plugin_api = 1
    requires = frozenset()
    Config = AcmeConfig

    def __init__(self, config):
        self.config = config
        if config.name == "user":
            raise DataError("mend the data")
        if config.name == "bug":
            raise KeyError("a bug")

    def __call__(self, inputs):
        raise NotImplementedError
"""


@pytest.fixture(params=CONFIGS)
def acme(install, request: pytest.FixtureRequest) -> None:
    """A loss `acme` with one of the kinds of `Config` that there are."""
    install(
        "acme_losses",
        "[torchrl_ckpt.losses]\nacme = acme_losses:Acme\n",
        modules={"acme_losses": IMPORTS + CONFIGS[request.param] + LOSS},
    )


@pytest.mark.usefixtures("acme")
def test_a_table_becomes_the_config() -> None:
    loss = create("losses", "acme", {"rate": 1, "name": "x"})

    assert isinstance(loss.config, config_class("losses", "acme"))
    assert (loss.config.rate, loss.config.name) == (1.0, "x")


@pytest.mark.usefixtures("acme")
def test_all_that_is_wrong_with_a_table_is_told_at_once() -> None:
    with pytest.raises(RecipeError) as raised:
        create("losses", "acme", {"rate": -1, "nmae": "x"})

    message = str(raised.value)
    assert "The losses plugin `acme` does not take these options" in message
    assert "nmae: there is no such option; did you mean `name`?" in message
    assert "rate: Input should be greater than or equal to 0" in message


@pytest.mark.usefixtures("acme")
def test_the_options_are_told_with_types_defaults_and_meaning() -> None:
    assert load("losses", "acme").options == (
        Option("rate", "float (ge=0)", None, "How much."),
        Option("name", "str | None", "None", "Of what."),
    )


@pytest.mark.usefixtures("acme")
def test_a_mistake_of_the_user_passes_through_the_constructor() -> None:
    with pytest.raises(DataError, match="mend the data"):
        create("losses", "acme", {"rate": 1, "name": "user"})


@pytest.mark.usefixtures("acme")
def test_a_mistake_of_the_constructor_is_a_broken_plugin() -> None:
    with pytest.raises(PluginBroken, match="KeyError: 'a bug'") as raised:
        create("losses", "acme", {"rate": 1, "name": "bug"})
    assert isinstance(raised.value.__cause__, KeyError)


def test_a_plugin_without_config_takes_no_options(install, good_loss: str) -> None:
    install(
        "acme_losses",
        "[torchrl_ckpt.losses]\nacme = acme_losses:GoodLoss\n",
        modules={"acme_losses": good_loss},
    )

    assert type(create("losses", "acme-losses:acme", {})).__name__ == "GoodLoss"
    with pytest.raises(RecipeError, match="takes no options, but was given rate"):
        create("losses", "acme", {"rate": 1})
