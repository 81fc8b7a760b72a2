"""`--help` tells of every key: its name, type, default and meaning."""

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
def test_every_key_is_there_and_no_line_is_too_long(schema: type) -> None:
    text = help_text(schema, "command")
    for key, shape in all_keys(schema):
        # A section is a heading, or among the keys of one whose like was explained above.
        assert flag(key) in text or (shape.section and f"[{'.'.join(key)}]" in text)
    assert max(map(len, text.splitlines())) <= 100


def test_a_key_is_told_with_type_default_and_meaning() -> None:
    text = help_text(SftRecipe, "sft", "Supervised fine-tuning.")
    assert text.startswith("usage: sft [@ FILE]")
    assert "\nSupervised fine-tuning.\n" in text
    assert (
        "  --ckpt.resume-step  a whole number, at least 1, or `latest`, or off; default: unset\n"
        "      Go on from this step's checkpoint, or from the `latest` good one.\n"
    ) in text
    assert "  --optim.lr  a number, above 0; default: 0.0003\n" in text
    assert "  --output-dir  a path; required\n" in text


def test_a_plugin_says_where_its_options_are_told() -> None:
    text = " ".join(help_text(SftRecipe, "sft").split())
    assert "--loss NAME; default: cross_entropy What is minimised." in text
    assert "`--loss.OPTION`, which `torchrl-ckpt plugins show losses NAME` lists." in text


def test_shared_keys_are_marked() -> None:
    text = " ".join(help_text(RlRecipe, "rl", defaults={"output_dir": "outputs/NAME"}).split())
    assert "Shared: reaches `trainer`, `orchestrator` and `inference`." in text
    assert "--trainer.model NAME; required, here or as `--model`" in text
    assert '--trainer.output-dir a path; default: "outputs/NAME"' in text


def test_a_section_of_a_kind_that_was_explained_lists_its_keys_only() -> None:
    text = help_text(Machine, "machine")
    assert "As with --ckpt above: --part.ckpt.interval, --part.ckpt.keep," in text
    assert text.count("Save every this many steps.") == 1


def test_without_a_summary_the_schema_speaks_for_itself() -> None:
    assert "\nTwo parts, one of them optional.\n" in help_text(Machine, "machine")
