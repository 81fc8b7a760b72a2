"""The plugin that was asked for works or its error says why not; no other is imported."""

from __future__ import annotations

from textwrap import dedent
from typing import Any, cast

import pytest

from tests.support.site_packages import GOOD_LOSS, SitePackages
from torchrl_ckpt.config.section import PluginTable
from torchrl_ckpt.plugin_api.engines import Engine
from torchrl_ckpt.plugin_api.errors import PluginBroken, RecipeError
from torchrl_ckpt.plugin_api.plugin import Kind
from torchrl_ckpt.registry.loading import config_class, create, load_plugin, violations

ACME = "[torchrl_ckpt.losses]\nacme = acme_losses:GoodLoss\n"


def why_broken(site: SitePackages, source: str, kind: str = "losses") -> str:
    entry_points = f"[torchrl_ckpt.{kind}]\nacme = acme_toys:Acme\n"
    site.install("acme_toys", entry_points, modules={"acme_toys": source}, version="2.3")
    with pytest.raises(PluginBroken) as raised:
        load_plugin(cast(Kind, kind), "acme")
    return str(raised.value)


def test_a_good_plugin_is_loaded_with_where_it_came_from(site: SitePackages) -> None:
    site.install_loss(GOOD_LOSS)

    plugin = load_plugin("losses", "acme")

    assert plugin.cls.__name__ == "GoodLoss"
    assert plugin.found.distribution == "acme-losses"
    assert (plugin.config, plugin.options) == (None, {})
    assert config_class("losses", "acme") is None


def test_a_table_of_a_foreign_checkpoint_gets_no_other_variable(
    site: SitePackages, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = """
        from pydantic import BaseModel, SecretStr

        class Config(BaseModel):
            token: SecretStr

        class GoodLoss:
            plugin_api, requires, Config = 1, frozenset(), Config

            def __init__(self, config):
                self.token = config.token.get_secret_value()

            def __call__(self, inputs):
                raise NotImplementedError
        """
    site.install_loss(dedent(source))
    for variable in ("TORCHRL_CKPT_TOKEN", "OTHER_TOKEN"):
        monkeypatch.setenv(variable, "value")
    own = PluginTable.model_validate({"type": "acme", "token": "env:TORCHRL_CKPT_TOKEN"})
    other = PluginTable.model_validate({"type": "acme", "token": "env:OTHER_TOKEN"})

    assert cast(Any, create("losses", own, any_variable=False)).token == "value"
    assert cast(Any, create("losses", other)).token == "value"
    with pytest.raises(RecipeError, match=r"OTHER_TOKEN; .*begin with TORCHRL_CKPT_"):
        create("losses", other, any_variable=False)


def test_a_broken_plugin_is_named_with_its_distribution_and_entry_point(site: SitePackages) -> None:
    assert why_broken(site, "raise ValueError('no luck')").startswith(
        "the losses plugin `acme` cannot be used: ValueError: no luck "
        f"({site.directory / 'acme_toys.py'}:1).\n"
        "  distribution: acme-toys 2.3\n"
        "  entry point:  acme_toys:Acme\n"
    )


def test_a_missing_dependency_is_named(site: SitePackages) -> None:
    message = why_broken(site, "import acme_dependency")

    assert "It needs `acme_dependency`, which is not installed" in message


def test_a_module_that_its_distribution_lacks_is_to_be_installed_again(site: SitePackages) -> None:
    site.install("acme_losses", ACME)

    with pytest.raises(PluginBroken, match="pip install --force-reinstall acme-losses"):
        load_plugin("losses", "acme")


def test_a_malformed_entry_point_is_reported(site: SitePackages) -> None:
    site.install("acme_losses", "[torchrl_ckpt.losses]\nacme = not an entry point\n")

    with pytest.raises(PluginBroken, match="Couldn't parse entry point spec"):
        load_plugin("losses", "acme")


def test_what_a_build_left_behind_is_suspected(site: SitePackages) -> None:
    metadata = site.install("acme_losses", ACME, egg_info=True)

    with pytest.raises(PluginBroken, match=f"delete {metadata.name}"):
        load_plugin("losses", "acme")


@pytest.mark.parametrize(
    ("source", "cause"),
    [
        ("import sys; sys.exit(3)", "SystemExit: 3"),
        ("", "has no attribute 'Acme'"),
        ("Acme = print", "not a class"),
        ("class Acme: pass", "it does not state `plugin_api = 1`"),
        ("class Acme: plugin_api = 2", "it is written for plugin_api 2"),
        (
            "class Acme:\n plugin_api = 1",
            "it has no attribute `requires`; it has no method `__call__`",
        ),
        (
            "class Acme:\n plugin_api = 1\n requires = ()\n __call__ = 7",
            "its `__call__` cannot be called",
        ),
    ],
)
def test_a_broken_promise_is_named(site: SitePackages, source: str, cause: str) -> None:
    assert cause in why_broken(site, source)


def test_the_empty_methods_of_an_inherited_contract_do_not_count(site: SitePackages) -> None:
    source = """
        from torchrl_ckpt.plugin_api.environments import Environment

        class Acme(Environment):
            plugin_api = 1

            def size(self, split):
                return 1
        """

    message = why_broken(site, source, kind="environments")

    assert "it has no method `problem`; it has no method `score`" in message
    assert "`size`" not in message


def test_a_version_that_is_only_inherited_as_an_annotation_is_not_stated(
    site: SitePackages,
) -> None:
    source = """
        from torchrl_ckpt.plugin_api.losses import Loss

        class Acme(Loss):
            requires = frozenset()

            def __call__(self, inputs):
                raise NotImplementedError
        """

    assert "it does not state `plugin_api = 1`" in why_broken(site, source)


def test_attributes_of_instances_are_not_required_of_the_class() -> None:
    methods = [name for name in vars(Engine) if not name.startswith("_")]
    engine = type(
        "GoodEngine",
        (),
        {
            "plugin_api": 1,
            "swaps_in_flight": False,
            "__init__": lambda self: setattr(self, "dtype", None),
            **{name: lambda self: None for name in methods},
        },
    )

    assert violations("engines", engine) == []


@pytest.mark.parametrize(
    ("config", "cause"),
    [
        ("7", "its `Config` is neither a dataclass nor a pydantic model"),
        ("dataclass(type('C', (), {'__annotations__': {'x': 'Nowhere'}}))", "cannot be read"),
    ],
)
def test_a_config_that_cannot_be_read_is_reported(
    site: SitePackages, config: str, cause: str
) -> None:
    source = (
        f"from dataclasses import dataclass\n{GOOD_LOSS}\n    Config = {config}\nAcme = GoodLoss"
    )

    assert cause in why_broken(site, source)


def test_only_the_plugin_that_was_asked_for_is_imported(site: SitePackages) -> None:
    site.install_loss(GOOD_LOSS)
    for group in ("losses", "models"):
        site.install(
            f"broken_{group}",
            f"[torchrl_ckpt.{group}]\nbroken = broken_{group}:X\n",
            modules={f"broken_{group}": "raise RuntimeError('imported')"},
        )

    finished = site.run_python(
        """
        import sys
        from torchrl_ckpt.config.section import PluginTable
        from torchrl_ckpt.registry.loading import create

        create("losses", PluginTable(type="acme"))
        plugins = {"acme_losses", "broken_losses", "broken_models", "torchrl_ckpt_losses"}
        print(sorted(plugins & set(sys.modules)), "torch" in sys.modules)
        """
    )

    assert finished.stdout == "['acme_losses'] False\n", finished.stderr
