"""`torchrl-ckpt plugins` explains what is installed, whatever is broken."""

from __future__ import annotations

import json

import pytest

from tests.support.site_packages import GOOD_LOSS, SitePackages

ACME = "[torchrl_ckpt.losses]\nacme = acme_losses:GoodLoss\n"


@pytest.fixture(name="_good_and_broken")
def install_good_and_broken(site: SitePackages) -> None:
    site.install_loss(GOOD_LOSS)
    site.install(
        "broken_losses",
        "[torchrl_ckpt.losses]\nbroken = broken_losses:X\n",
        modules={"broken_losses": "raise RuntimeError('imported')"},
    )


def test_list_imports_neither_torch_nor_a_plugin(site: SitePackages) -> None:
    finished = site.run_python(
        """
        import sys
        from torchrl_ckpt.cli.main import main

        main(["plugins", "list", "--json"])
        packages = {name.partition(".")[0] for name in sys.modules}
        unwanted = {"torch", "transformers"} | {n for n in packages if "torchrl_ckpt_" in n}
        # The editable install of this project has a finder of its own.
        imported = {n for n in packages & unwanted if not n.startswith("__editable__")}
        print(sorted(imported), file=sys.stderr)
        """
    )

    assert finished.stderr == "[]\n"
    assert json.loads(finished.stdout)["plugins"]


@pytest.mark.usefixtures("_good_and_broken")
@pytest.mark.parametrize("arguments", [["--help"], ["list"], ["show", "acme"]])
def test_a_broken_plugin_disturbs_no_command_about_others(
    site: SitePackages, arguments: list[str]
) -> None:
    finished = site.run_command("plugins", *arguments)

    assert (finished.returncode, finished.stderr) == (0, "")


@pytest.mark.usefixtures("_good_and_broken")
def test_a_row_of_the_list_has_kind_name_distribution_version_and_entry_point(
    site: SitePackages,
) -> None:
    rows = [line.split() for line in site.run_command("plugins", "list").stdout.splitlines()]

    assert ["losses", "broken", "broken-losses", "1.0", "broken_losses:X"] in rows


def test_a_kind_can_be_listed_alone(site: SitePackages) -> None:
    finished = site.run_command("plugins", "list", "--json", "--kind", "engines")

    assert {plugin["kind"] for plugin in json.loads(finished.stdout)["plugins"]} == {"engines"}


def test_conflicts_and_malformed_files_are_marked(site: SitePackages) -> None:
    site.install("acme_losses", ACME)
    site.install("other_losses", ACME)
    twice = "[console_scripts]\na = b:c\na = d:e\n"
    bad_file = site.install("stranger", twice) / "entry_points.txt"

    text = site.run_command("plugins", "list").stdout
    document = json.loads(site.run_command("plugins", "list", "--json").stdout)

    assert text.count("acme (conflict)") == 2
    assert 'type = "other-losses:acme"' in text
    assert f"{bad_file} is malformed" in text
    conflicts = {plugin["distribution"]: plugin["conflicts_with"] for plugin in document["plugins"]}
    assert conflicts["acme-losses"] == ["other-losses:acme"]
    assert conflicts["torchrl-ckpt"] == []
    assert [entry["file"] for entry in document["unreadable"]] == [str(bad_file)]


def test_show_describes_a_plugin_and_its_options_in_plain_words(site: SitePackages) -> None:
    text = site.run_command("plugins", "show", "environments", "reverse_text").stdout

    assert "reverse_text (environments), torchrl-ckpt" in text
    rows = [" ".join(line.split()) for line in text.splitlines()]
    assert any(row.startswith("text a path required") for row in rows)
    assert any(row.startswith("min_letters a whole number, at least 1 2") for row in rows)


@pytest.mark.usefixtures("_good_and_broken")
def test_show_of_a_broken_plugin_says_why_and_exits_with_2(site: SitePackages) -> None:
    finished = site.run_command("plugins", "show", "broken")

    assert finished.returncode == 2
    assert "RuntimeError: imported" in finished.stdout


@pytest.mark.usefixtures("_good_and_broken")
def test_check_tells_good_from_broken_by_its_exit_code(site: SitePackages) -> None:
    good = site.run_command("plugins", "check", "acme")
    broken = site.run_command("plugins", "check", "broken-losses:broken")

    assert good.returncode == 0
    assert "1 good, 0 broken" in good.stdout
    assert broken.returncode == 1
    assert "RuntimeError: imported" in broken.stdout


@pytest.mark.usefixtures("_good_and_broken")
def test_check_imports_all_of_them(site: SitePackages) -> None:
    finished = site.run_command("plugins", "check")

    assert finished.returncode == 1
    assert "losses acme: acme-losses 1.0" in finished.stdout
    assert "the losses plugin `broken` cannot be used" in finished.stdout
    assert "losses grpo: torchrl-ckpt" in finished.stdout
