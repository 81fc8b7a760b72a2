"""`--help` explains every key: its name, type, default and meaning."""

from __future__ import annotations

import pytest

from tests.support.toy_schemas import Machine
from torchrl_ckpt.config.describe import flag
from torchrl_ckpt.config.inference import InferenceConfig
from torchrl_ckpt.config.option_spec import all_keys
from torchrl_ckpt.config.orchestrator import OrchestratorConfig
from torchrl_ckpt.config.rl_recipe import RlRecipe
from torchrl_ckpt.config.sft_recipe import SftRecipe
from torchrl_ckpt.config.trainer import RlTrainerConfig
from torchrl_ckpt.recipe.help import help_text

SCHEMAS = [SftRecipe, RlRecipe, RlTrainerConfig, OrchestratorConfig, InferenceConfig]


@pytest.mark.parametrize("schema", SCHEMAS)
def test_every_key_is_listed_and_no_line_is_too_long(schema: type) -> None:
    text = help_text(schema, "command")
    for key, spec in all_keys(schema):
        # A section is a heading, or among the keys of a section like one above.
        assert flag(key) in text or (spec.section and f"[{'.'.join(key)}]" in text)
    assert max(map(len, text.splitlines())) <= 100


@pytest.mark.parametrize("schema", SCHEMAS)
def test_every_option_is_documented(schema: type) -> None:
    assert [key for key, spec in all_keys(schema) if not spec.documentation] == []


def test_a_key_is_listed_with_type_default_and_meaning() -> None:
    text = help_text(SftRecipe, "sft", "Supervised fine-tuning.")
    assert text.startswith("usage: sft [@ FILE]")
    assert "\nSupervised fine-tuning.\n" in text
    assert (
        "  --ckpt.resume-step  a whole number, at least 1, or `latest`, or off; default: unset\n"
        "      Resume from the checkpoint of this step, or from the `latest` undamaged one.\n"
    ) in text
    assert "  --optim.lr  a number, above 0; default: 0.0003\n" in text
    assert "  --output-dir  a path; required\n" in text


def test_a_plugin_key_says_where_its_options_are_listed() -> None:
    text = " ".join(help_text(SftRecipe, "sft").split())
    assert "--loss NAME; default: cross_entropy The loss to minimise." in text
    assert "`--loss.OPTION`, listed by `torchrl-ckpt plugins show losses NAME`." in text


def test_shared_keys_are_marked() -> None:
    text = " ".join(help_text(RlRecipe, "rl", defaults={"output_dir": "outputs/NAME"}).split())
    assert "Shared: applies to `trainer`, `orchestrator` and `inference`." in text
    assert "--trainer.model NAME; required, here or as `--model`" in text
    assert '--trainer.output-dir a path; default: "outputs/NAME"' in text


def test_a_section_like_one_above_lists_its_keys_only() -> None:
    text = help_text(Machine, "machine")
    assert "As --ckpt above: --part.ckpt.interval, --part.ckpt.keep," in text
    assert text.count("Save a checkpoint every this many steps.") == 1


def test_without_a_summary_the_docstring_of_the_schema_is_shown() -> None:
    assert "\nTwo parts, one of them optional.\n" in help_text(Machine, "machine")
