"""A name means one plugin, or the error says what to do."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.site_packages import SitePackages
from torchrl_ckpt.plugin_api.errors import PluginConflict, PluginNotFound
from torchrl_ckpt.registry.lookup import find_plugin, find_plugins

ACME = "[torchrl_ckpt.losses]\nacme = acme_losses:Acme\n"


def test_a_missing_name_is_answered_with_the_nearest_and_all_there_is() -> None:
    with pytest.raises(PluginNotFound) as raised:
        find_plugin("losses", "grop")

    message = str(raised.value)
    assert "called `grop` is installed; did you mean `grpo`?" in message
    assert "cross_entropy (torchrl-ckpt" in message
    assert "pip install" in message


def test_a_name_of_another_kind_is_pointed_out() -> None:
    with pytest.raises(PluginNotFound, match="Plugins of that name: losses `torchrl-ckpt:grpo`"):
        find_plugin("models", "grpo")


def test_a_conflict_is_an_error_only_where_the_name_is_used(site: SitePackages) -> None:
    site.install("acme_losses", ACME)
    site.install("other_losses", ACME)

    assert find_plugin("losses", "grpo").distribution == "torchrl-ckpt"
    with pytest.raises(PluginConflict) as raised:
        find_plugin("losses", "acme")

    message = str(raised.value)
    assert 'type = "acme-losses:acme" or type = "other-losses:acme"' in message
    assert "acme-losses 1.0 (acme_losses:Acme)" in message


@pytest.mark.parametrize("spelling", ["other-losses", "other_losses", "Other.Losses"])
def test_the_distribution_resolves_a_conflict_however_it_is_spelled(
    site: SitePackages, spelling: str
) -> None:
    site.install("acme_losses", ACME)
    site.install("other_losses", ACME)

    assert find_plugin("losses", f"{spelling}:acme").distribution == "other-losses"


def test_a_distribution_that_names_a_plugin_twice_has_to_drop_one(site: SitePackages) -> None:
    site.install("acme_losses", ACME + "acme = acme_losses:Other\n")

    with pytest.raises(PluginConflict, match="One distribution names it twice: remove"):
        find_plugin("losses", "acme")


def test_the_wrong_distribution_is_told_from_the_right_one(site: SitePackages) -> None:
    site.install("acme_losses", ACME)

    with pytest.raises(PluginNotFound, match="Plugins of that name: losses `acme-losses:acme`"):
        find_plugin("losses", "other-losses:acme")


def test_a_stale_copy_that_names_it_is_explained(
    site: SitePackages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed = site.install("acme_losses", ACME)
    leftover = site.install(
        "acme_losses",
        "[torchrl_ckpt.losses]\nacme_new = acme_losses:New\n",
        folder=tmp_path / "source",
        egg_info=True,
    )
    monkeypatch.syspath_prepend(tmp_path / "source")

    with pytest.raises(PluginNotFound) as raised:
        find_plugin("losses", "acme_new")

    message = str(raised.value)
    assert f"{leftover} says that losses `acme_new` is acme_losses:New" in message
    assert str(installed) in message
    assert "install acme-losses again" in message


def test_a_malformed_file_is_named_where_a_plugin_is_missing(site: SitePackages) -> None:
    bad_file = site.install("acme_losses", b"\xff") / "entry_points.txt"

    with pytest.raises(PluginNotFound, match="is malformed") as raised:
        find_plugin("losses", "acme")
    assert str(bad_file) in str(raised.value)


def test_a_name_without_a_kind_finds_all_that_bear_it() -> None:
    assert [plugin.kind for plugin in find_plugins("transformers")] == ["engines", "models"]
