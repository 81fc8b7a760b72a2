"""What is installed is found, whatever else is installed beside it."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from tests.support.site_packages import SitePackages
from torchrl_ckpt.registry.discovery import FoundPlugin, discover

GOOD = """
    [torchrl_ckpt.losses]
    acme = acme_losses:Acme
    """


def found(name: str) -> list[FoundPlugin]:
    return [plugin for plugin in discover().plugins if plugin.name == name]


def test_first_party_plugins_are_found_like_any_other() -> None:
    offered = {(plugin.kind, plugin.name, plugin.distribution) for plugin in discover().plugins}

    assert offered >= {
        ("models", "transformers", "torchrl-ckpt"),
        ("engines", "transformers", "torchrl-ckpt"),
        ("losses", "cross_entropy", "torchrl-ckpt"),
        ("losses", "grpo", "torchrl-ckpt"),
        ("checkpoint_backends", "dcp", "torchrl-ckpt"),
        ("environments", "reverse_text", "torchrl-ckpt"),
    }


def test_a_plugin_is_found_with_its_distribution_and_version(site: SitePackages) -> None:
    metadata = site.install("Acme_Losses", GOOD, version="2.3")

    assert found("acme") == [
        FoundPlugin("losses", "acme", "acme_losses:Acme", "acme-losses", "2.3", metadata)
    ]


def test_two_distributions_with_one_name_are_both_found(site: SitePackages) -> None:
    site.install("acme_losses", GOOD)
    site.install("other_losses", GOOD)

    first, second = found("acme")

    assert (first.distribution, second.distribution) == ("acme-losses", "other-losses")
    assert discover().rivals(first) == (second,)


def test_entry_points_of_other_groups_are_ignored(site: SitePackages) -> None:
    site.install(
        "acme_losses", "[console_scripts]\nacme = a:b\n[torchrl_ckpt.gadgets]\nacme = a:b\n"
    )

    assert found("acme") == []


def test_one_distribution_seen_twice_counts_once(site: SitePackages) -> None:
    installed = site.install("acme_losses", GOOD)
    site.install("acme_losses", GOOD, egg_info=True)

    assert [plugin.metadata for plugin in found("acme")] == [installed]
    assert discover().stale == ()


def test_a_stale_egg_info_ahead_on_the_path_hides_nothing(
    site: SitePackages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed = site.install("acme_losses", GOOD, version="2.0")
    source = tmp_path / "source"
    old = "[torchrl_ckpt.losses]\nacme = acme_old:Acme\nacme_gone = acme_old:Gone\n"
    leftover = site.install("acme_losses", old, version="1.0", folder=source, egg_info=True)
    monkeypatch.syspath_prepend(source)

    (plugin,) = found("acme")
    warnings = [str(entry) for entry in discover().stale if entry.plugin.name.startswith("acme")]

    assert (plugin.entry_point, plugin.metadata) == ("acme_losses:Acme", installed)
    assert found("acme_gone") == []
    assert len(warnings) == 2
    assert all(str(leftover) in warning and str(installed) in warning for warning in warnings)


def test_an_egg_info_alone_is_a_plugin_with_its_version(site: SitePackages) -> None:
    site.install("acme_losses", GOOD, version="0.9", egg_info=True)

    assert [plugin.version for plugin in found("acme")] == ["0.9"]


@pytest.mark.parametrize(
    "malformed",
    [
        b"[console_scripts]\na = b:c\na = d:e\n",
        b"a = b:c\n",
        b"[console_scripts]\njust a line\n",
        b"[console_scripts]\n\xff\xfe = b:c\n",
    ],
    ids=["duplicate key", "no section", "no value", "not UTF-8"],
)
def test_a_malformed_file_of_another_package_hides_no_plugin_and_is_reported(
    site: SitePackages, malformed: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, logger="torchrl_ckpt.registry")
    bad_file = site.install("aaa_stranger", malformed) / "entry_points.txt"
    site.install("acme_losses", GOOD)

    assert [plugin.distribution for plugin in found("acme")] == ["acme-losses"]
    assert bad_file in [entry.file for entry in discover().unreadable]
    assert str(bad_file) in caplog.text


def test_a_plugin_survives_its_own_duplicate_key_elsewhere(site: SitePackages) -> None:
    site.install(
        "acme_losses", "[console_scripts]\na = b:c\na = d:e\n[torchrl_ckpt.losses]\nacme = a:A"
    )

    assert [plugin.entry_point for plugin in found("acme")] == ["a:A"]


def test_a_percent_sign_is_just_a_character(site: SitePackages) -> None:
    site.install(
        "aaa_stranger", "[console_scripts]\nrate = 100%:c\n[torchrl_ckpt.losses]\nb = %(x)s:y"
    )
    site.install("acme_losses", GOOD)

    assert len(found("acme")) == 1
    assert [plugin.entry_point for plugin in found("b")] == ["%(x)s:y"]


def test_the_environment_is_searched_once_a_process() -> None:
    assert discover() is discover()
