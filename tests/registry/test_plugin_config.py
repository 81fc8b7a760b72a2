"""A recipe's table becomes the plugin's `Config`, and what does not fit is reported."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import SecretStr

from tests.support.site_packages import GOOD_LOSS, SitePackages
from torchrl_ckpt.config.describe import default_text, describe
from torchrl_ckpt.config.option_spec import OptionSpec
from torchrl_ckpt.config.section import PluginTable
from torchrl_ckpt.plugin_api.errors import DataError, PluginBroken, RecipeError
from torchrl_ckpt.registry.loading import config_class, create, load_plugin

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


@pytest.fixture(name="_acme", params=CONFIGS)
def install_acme(site: SitePackages, request: pytest.FixtureRequest) -> None:
    """The loss `acme`, with a `Config` of each of the kinds that there are."""
    site.install_loss(IMPORTS + CONFIGS[request.param] + LOSS, entry_point="Acme")


def create_acme(**options: Any) -> Any:
    return create("losses", PluginTable(type="acme", **options))


@pytest.mark.usefixtures("_acme")
def test_a_table_becomes_the_config() -> None:
    config_type = config_class("losses", "acme")
    assert config_type is not None

    config = create_acme(rate=1, name="x").config

    assert isinstance(config, config_type)
    assert (config.rate, config.name) == (1.0, "x")


@pytest.mark.usefixtures("_acme")
def test_everything_that_is_wrong_with_a_table_is_reported_at_once() -> None:
    with pytest.raises(RecipeError) as raised:
        create_acme(rate=-1, nmae="x")

    assert str(raised.value) == (
        "the losses plugin `acme` does not take these options: "
        "unknown option `nmae`; did you mean `name`?; "
        "`rate` is -1; expected a number, at least 0"
    )


@pytest.mark.usefixtures("_acme")
def test_an_option_that_is_missing_is_reported_with_what_it_takes() -> None:
    with pytest.raises(RecipeError, match=r"`rate` is missing \(a number, at least 0\)"):
        create_acme()


@pytest.mark.usefixtures("_acme")
def test_an_unknown_option_that_is_like_none_is_answered_with_all() -> None:
    with pytest.raises(RecipeError, match="unknown option `zzz`; it has rate and name"):
        create_acme(rate=1, zzz=1)


@pytest.mark.usefixtures("_acme")
def test_options_are_described_with_type_default_and_meaning() -> None:
    options = load_plugin("losses", "acme").options

    assert {
        name: (describe(spec), default_text(spec), spec.documentation)
        for name, spec in options.items()
    } == {
        "rate": ("a number, at least 0", "required", "How much."),
        "name": ("text or off", "unset", "Of what."),
    }


@pytest.mark.usefixtures("_acme")
def test_a_users_mistake_passes_through_the_constructor() -> None:
    with pytest.raises(DataError, match="mend the data"):
        create_acme(rate=1, name="user")


@pytest.mark.usefixtures("_acme")
def test_any_other_error_of_the_constructor_is_a_broken_plugin() -> None:
    with pytest.raises(PluginBroken, match="KeyError: 'a bug'") as raised:
        create_acme(rate=1, name="bug")
    assert isinstance(raised.value.__cause__, KeyError)


def test_a_plugin_without_config_takes_no_options(site: SitePackages) -> None:
    site.install_loss(GOOD_LOSS)

    loss = create("losses", PluginTable(type="acme-losses:acme"))

    assert type(loss).__name__ == "GoodLoss"
    with pytest.raises(RecipeError, match="takes no options, but was given rate"):
        create_acme(rate=1)


def test_a_secret_is_described_as_its_variable_and_its_default_is_not_shown() -> None:
    spec = OptionSpec(SecretStr | None, SecretStr("built in"))

    assert describe(spec) == "a secret, as env:VARIABLE, or off"
    assert default_text(spec) == "***"
