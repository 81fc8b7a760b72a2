"""A plugin that was asked for works or says why not; one that was not is left alone."""

from __future__ import annotations

import pytest

from torchrl_ckpt.plugin_api.errors import PluginBroken
from torchrl_ckpt.registry import config_class, load

ACME = "[torchrl_ckpt.losses]\nacme = acme_losses:GoodLoss\n"


def why_broken(install, source: str, kind: str = "losses") -> str:
    entry_points = f"[torchrl_ckpt.{kind}]\nacme = acme_losses:GoodLoss\n"
    install("acme_losses", entry_points, modules={"acme_losses": source}, version="2.3")
    with pytest.raises(PluginBroken) as raised:
        load(kind, "acme")
    return str(raised.value)


def test_a_good_plugin_is_loaded_with_where_it_came_from(install, good_loss: str) -> None:
    install("acme_losses", ACME, modules={"acme_losses": good_loss})

    plugin = load("losses", "acme")

    assert plugin.cls.__name__ == "GoodLoss"
    assert plugin.found.distribution == "acme-losses"
    assert plugin.config is None
    assert config_class("losses", "acme") is None


def test_a_broken_plugin_is_told_in_full(install) -> None:
    assert why_broken(install, "raise ValueError('no luck')").startswith(
        "The losses plugin `acme` cannot be used: ValueError: no luck.\n"
        "  distribution: acme-losses 2.3\n"
        "  entry point:  acme_losses:GoodLoss\n"
    )


def test_a_dependency_that_is_missing_is_named(install) -> None:
    message = why_broken(install, "import acme_dependency")

    assert "It needs `acme_dependency`, which is not installed" in message


def test_a_module_that_its_distribution_lacks_is_told_as_such(install) -> None:
    install("acme_losses", ACME)

    with pytest.raises(PluginBroken, match="pip install --force-reinstall acme-losses"):
        load("losses", "acme")


def test_an_entry_point_that_is_none_is_told(install) -> None:
    install("acme_losses", "[torchrl_ckpt.losses]\nacme = not an entry point\n")

    with pytest.raises(PluginBroken, match="Couldn't parse entry point spec"):
        load("losses", "acme")


def test_a_leftover_of_a_build_is_suspected(install) -> None:
    metadata = install("acme_losses", ACME, egg_info=True)

    with pytest.raises(PluginBroken, match=f"delete {metadata.name}"):
        load("losses", "acme")


@pytest.mark.parametrize(
    ("source", "cause"),
    [
        ("import sys; sys.exit(3)", "SystemExit: 3"),
        ("", "has no attribute 'GoodLoss'"),
        ("GoodLoss = print", "not a class"),
        ("class GoodLoss: pass", "it does not state `plugin_api = 1`"),
        ("class GoodLoss: plugin_api = 2", "it is written for plugin_api 2"),
        (
            "class GoodLoss:\n plugin_api = 1",
            "it has no attribute `requires`; it has no method `__call__`",
        ),
        (
            "class GoodLoss:\n plugin_api = 1\n requires = ()\n __call__ = 7",
            "its `__call__` cannot be called",
        ),
    ],
)
def test_what_is_not_a_plugin_is_told_why(install, source: str, cause: str) -> None:
    assert cause in why_broken(install, source)


def test_the_empty_methods_of_an_inherited_contract_do_not_count(install) -> None:
    source = """
        from torchrl_ckpt.plugin_api.environments import Environment

        class GoodLoss(Environment):
            plugin_api = 1

            def size(self, split):
                return 1
        """

    message = why_broken(install, source, kind="environments")

    assert "it has no method `problem`; it has no method `score`" in message
    assert "`size`" not in message


@pytest.mark.parametrize(
    ("config", "cause"),
    [
        ("7", "its `Config` is neither a dataclass nor a pydantic model"),
        ("dataclass(type('C', (), {'__annotations__': {'x': 'Nowhere'}}))", "cannot be read"),
    ],
)
def test_a_config_that_cannot_be_checked_is_told(
    install, good_loss: str, config: str, cause: str
) -> None:
    source = f"from dataclasses import dataclass\n{good_loss}    Config = {config}\n"

    assert cause in why_broken(install, source)


def test_only_the_plugin_that_was_asked_for_is_imported(install, run_python, good_loss) -> None:
    install("acme_losses", ACME, modules={"acme_losses": good_loss})
    broken = "raise RuntimeError('imported')"
    for group in ("losses", "models"):
        entry_points = f"[torchrl_ckpt.{group}]\nbroken = broken_{group}:X\n"
        install(f"broken_{group}", entry_points, modules={f"broken_{group}": broken})

    done = run_python(
        source="""
        import sys
        from torchrl_ckpt import registry

        registry.create("losses", "acme", {})
        plugins = {"acme_losses", "broken_losses", "broken_models", "torchrl_ckpt_losses"}
        print(sorted(plugins & set(sys.modules)), "torch" in sys.modules)
        """
    )

    assert done.stdout == "['acme_losses'] False\n", done.stderr
