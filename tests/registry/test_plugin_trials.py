"""`plugins check` tries an environment and a loss, and names what is wrong with their answers."""

from __future__ import annotations

from pathlib import Path
from textwrap import dedent, indent

import pytest

from tests.support.commands import RECIPES
from tests.support.site_packages import SitePackages
from torchrl_ckpt.cli.main import main


def _loss(body: str, requires: str = "frozenset()") -> str:
    return (
        dedent(
            f"""
            import torch
            from torchrl_ckpt.plugin_api.losses import LossOutput

            class GoodLoss:
                plugin_api = 1
                requires = {requires}

                def __call__(self, inputs):
            """
        )
        + indent(body, " " * 8)
        + "\n"
    )


def _environment(method: str) -> str:
    return (
        dedent(
            """
            from torchrl_ckpt.plugin_api.environments import Problem, Score

            class Acme:
                plugin_api = 1

                def size(self, split):
                    return 2

                def problem(self, split, index):
                    return Problem(f"p{index}", "1 + 1 =", "2")

                def score(self, problem, completion):
                    return Score(0.5)

            """
        )
        + indent(dedent(method), "    ")
        + "\n"
    )


def _check(site: SitePackages, capsys: pytest.CaptureFixture[str], source: str) -> tuple[int, str]:
    kind, cls = ("losses", "GoodLoss") if "GoodLoss" in source else ("environments", "Acme")
    site.install(
        "acme_tried",
        f"[torchrl_ckpt.{kind}]\nacme = acme_tried:{cls}\n",
        modules={"acme_tried": source},
    )
    code = main(["plugins", "check", "acme"])
    return code or 0, capsys.readouterr().out


def test_what_a_good_one_returned_is_shown(
    site: SitePackages, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out = _check(site, capsys, _environment("reward = 1"))
    assert (code, "the answer to problem 'p0' scores 0.5" in out) == (0, True), out


def test_a_good_loss_has_a_gradient(site: SitePackages, capsys: pytest.CaptureFixture[str]) -> None:
    source = _loss(
        "return LossOutput((inputs.logits.sum(-1) * inputs.advantages).sum())",
        "frozenset({'advantages'})",
    )
    code, out = _check(site, capsys, source)
    assert (code, "the loss of three tokens is" in out) == (0, True), out


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("return inputs.logits.sum()", "it returned tensor"),
        ("return LossOutput(1.0)", "a `loss` that is 1.0 (float); expected a tensor"),
        ("return LossOutput(inputs.logits.sum(-1))", "a `loss` that has the shape [1, 3]"),
        ("return LossOutput(inputs.logits.sum() / 0)", "a `loss` that is"),
        ("return LossOutput(inputs.logits.detach().sum())", "a `loss` without a gradient"),
        ("return LossOutput((inputs.logits * 0).sqrt().sum())", "gives the logits the gradient"),
        (
            "return LossOutput(inputs.logits.sum(), {'kl': inputs.logits})",
            "a metric `kl` that has the shape [1, 3, 5]",
        ),
        ("return LossOutput(inputs.logits.sum(), {'loss': 1})", "a metric called 'loss'"),
        ("return LossOutput(inputs.advantages.sum())", "it raises when called on three tokens"),
    ],
)
def test_a_loss_is_told_what_is_wrong_with_what_it_returned(
    site: SitePackages, capsys: pytest.CaptureFixture[str], body: str, words: str
) -> None:
    code, out = _check(site, capsys, _loss(body))

    assert code == 1
    assert "the losses plugin `acme` cannot be used" in out
    assert words in out


def test_a_loss_that_requires_what_there_is_not_is_broken(
    site: SitePackages, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out = _check(site, capsys, _loss("return 1", "{'rewards'}"))
    assert (code, "its `requires` is {'rewards'}" in out) == (1, True), out


@pytest.mark.parametrize(
    ("method", "words"),
    [
        ("def size(self, split): return 'many'", "size('train') returned 'many' (str)"),
        ("def problem(self, split, index): return 'a'", "problem('train', 0) returned 'a' (str)"),
        ("def score(self, problem, completion): return 1.0", "score of problem 'p0' returned 1.0"),
        (
            "def score(self, problem, completion): return Score(float('nan'))",
            "returned `reward` = nan (float); expected a finite number",
        ),
        ("def score(self, problem, completion): return 1 / 0", "raised ZeroDivisionError"),
        ("def __init__(self): raise OSError('no data')", "OSError: no data ("),
    ],
)
def test_an_environment_is_told_what_is_wrong_with_what_it_returned(
    site: SitePackages, capsys: pytest.CaptureFixture[str], method: str, words: str
) -> None:
    code, out = _check(site, capsys, _environment(method))

    assert code == 1
    assert "broken  environments acme" in out
    assert words in out


def test_a_plugin_that_needs_options_is_not_tried(capsys: pytest.CaptureFixture[str]) -> None:
    assert not main(["plugins", "check", "reverse_text"])
    assert "not tried, as it needs `text`" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["list", "check"])
def test_a_syntax_error_is_shown_with_path_and_line(
    site: SitePackages, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    site.install(
        "acme_wrong",
        "[torchrl_ckpt.losses]\nacme_wrong = acme_wrong:Acme\n",
        modules={"acme_wrong": "import sys\nclass Acme\n    pass\n"},
    )
    main(["plugins", command])

    path = site.directory / "acme_wrong.py"
    assert f"SyntaxError: expected ':' ({path}:2)" in capsys.readouterr().out


def test_a_syntax_error_in_a_package_is_found_without_importing_it(
    site: SitePackages, capsys: pytest.CaptureFixture[str]
) -> None:
    package = site.directory / "acme_package" / "inner"
    package.mkdir(parents=True)
    marker = site.directory / "imported"
    for folder in (package.parent, package):
        (folder / "__init__.py").write_text(f"open({str(marker)!r}, 'w')\n")
    (package / "loss.py").write_text("\n\nif:\n")
    entry = "[torchrl_ckpt.losses]\nacme = acme_package.inner.loss:Acme\n"
    site.install("acme_package", entry)

    main(["plugins", "list"])

    assert f"SyntaxError: invalid syntax ({package / 'loss.py'}:3)" in capsys.readouterr().out
    assert not marker.exists()


def test_a_dry_run_tries_the_loss_and_the_environment_with_the_recipes_options(
    site: SitePackages,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, source in (
        ("acme_env", _environment("def score(self, problem, completion): return 1.0")),
        ("acme_loss", _loss("return inputs.logits.sum()")),
    ):
        kind, cls = ("losses", "GoodLoss") if "loss" in name else ("environments", "Acme")
        entry = f"[torchrl_ckpt.{kind}]\n{name} = {name}:{cls}\n"
        site.install(name, entry, modules={name: source})
    recipe = str(RECIPES / "rl_reverse.toml")
    for flags, words in (
        (("--trainer.loss", "acme_loss"), "the losses plugin `acme_loss` cannot be used"),
        (("--orchestrator.environment", "acme_env"), "score of problem 'p0' returned 1.0 (float)"),
    ):
        assert main(["run", recipe, *flags, "--dry-run"]) == 2
        assert words in capsys.readouterr().err
        assert not (tmp_path / "outputs").exists()
