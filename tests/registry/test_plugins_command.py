"""`torchrl-ckpt plugins` explains what is installed, and no plugin can break it."""

from __future__ import annotations

import json

import pytest

ACME = "[torchrl_ckpt.losses]\nacme = acme_losses:GoodLoss\n"


@pytest.fixture
def good_and_broken(install, good_loss: str) -> None:
    install("acme_losses", ACME, modules={"acme_losses": good_loss})
    install(
        "broken_losses",
        "[torchrl_ckpt.losses]\nbroken = broken_losses:X\n",
        modules={"broken_losses": "raise RuntimeError('imported')"},
    )


def test_listing_imports_neither_torch_nor_a_plugin(run_python) -> None:
    done = run_python(
        source="""
        import argparse, sys
        from torchrl_ckpt.cli import plugins

        parser = argparse.ArgumentParser()
        plugins.add_parser(parser.add_subparsers())
        plugins.main(parser.parse_args(["plugins", "list", "--json"]))
        packages = {name.partition(".")[0] for name in sys.modules}
        unwanted = {"torch", "transformers"} | {n for n in packages if "torchrl_ckpt_" in n}
        # The editable install of this project has a finder of its own.
        loaded = {n for n in packages & unwanted if not n.startswith("__editable__")}
        print(sorted(loaded), file=sys.stderr)
        """
    )

    assert done.stderr == "[]\n"
    assert json.loads(done.stdout)["plugins"]


@pytest.mark.usefixtures("good_and_broken")
@pytest.mark.parametrize("arguments", [["--help"], ["list"], ["show", "acme"]])
def test_a_broken_plugin_breaks_nothing_that_is_not_about_it(
    run_python, arguments: list[str]
) -> None:
    done = run_python("plugins", *arguments)

    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.usefixtures("good_and_broken")
def test_a_line_of_the_list_holds_all_that_is_known(run_python) -> None:
    lines = [line.split() for line in run_python("plugins", "list").stdout.splitlines()]

    assert ["losses", "broken", "broken-losses", "1.0", "broken_losses:X"] in lines


def test_a_kind_can_be_listed_alone(run_python) -> None:
    listing = json.loads(run_python("plugins", "list", "--json", "--kind", "engines").stdout)

    assert {plugin["kind"] for plugin in listing["plugins"]} == {"engines"}


def test_conflicts_and_malformed_files_are_marked(install, run_python) -> None:
    install("acme_losses", ACME)
    install("other_losses", ACME)
    bad_file = install("stranger", b"\xff") / "entry_points.txt"

    text = run_python("plugins", "list").stdout
    listing = json.loads(run_python("plugins", "list", "--json").stdout)

    assert text.count("acme (conflict)") == 2
    assert 'type = "other-losses:acme"' in text
    assert f"{bad_file} is malformed" in text
    conflicts = {plugin["distribution"]: plugin["conflicts_with"] for plugin in listing["plugins"]}
    assert conflicts["acme-losses"] == ["other-losses:acme"]
    assert conflicts["torchrl-ckpt"] == []
    assert [entry["file"] for entry in listing["unreadable"]] == [str(bad_file)]


def test_show_describes_a_plugin_and_its_options(run_python) -> None:
    text = run_python("plugins", "show", "losses", "grpo").stdout

    assert "grpo (losses), torchrl-ckpt" in text
    assert "clip_low" in text
    assert "How far below 1" in text


@pytest.mark.usefixtures("good_and_broken")
def test_check_tells_good_from_broken_by_its_exit_code(run_python) -> None:
    good = run_python("plugins", "check", "acme")
    broken = run_python("plugins", "check", "broken-losses:broken")

    assert good.returncode == 0
    assert "1 good, 0 broken" in good.stdout
    assert broken.returncode == 1
    assert "RuntimeError: imported" in broken.stdout


@pytest.mark.usefixtures("good_and_broken")
def test_check_goes_through_all_of_them(run_python) -> None:
    done = run_python("plugins", "check")

    assert done.returncode == 1
    assert "losses acme: acme-losses 1.0" in done.stdout
    assert "The losses plugin `broken` cannot be used" in done.stdout
    assert "losses grpo: torchrl-ckpt" in done.stdout
