"""Nothing that is loaded executes code: model directories with code of their own, and pickles."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torchrl_ckpt_transformers.model import TransformersModel, TransformersModelConfig
from torchrl_ckpt_transformers.pretrained import load_causal_lm

from tests.support.commands import BIN
from tests.support.tiny_model import tiny_model
from torchrl_ckpt.plugin_api.errors import ModelError

_MODULE = """
import pathlib
pathlib.Path({marker!r}).touch()
from transformers import PreTrainedConfig, PreTrainedTokenizerFast, Qwen3ForCausalLM

class XConfig(PreTrainedConfig):
    model_type = "x"

class XModel(Qwen3ForCausalLM):
    config_class = XConfig

class XTokenizer(PreTrainedTokenizerFast):
    pass
"""

# Asks the plugin for each part of each model that is named, and prints what is said about it.
_LOAD_EVERYTHING = """
import sys
from torchrl_ckpt_transformers.model import TransformersModel, TransformersModelConfig
from torchrl_ckpt.plugin_api.errors import ModelError

for directory in sys.argv[1:]:
    model = TransformersModel(TransformersModelConfig(name=directory))
    parts = {
        "tokenizer": model.tokenizer,
        "configuration": model.hyper_parameters,
        "model": lambda: model.causal_lm(pretrained=True),
        "random": lambda: model.causal_lm(pretrained=False),
    }
    for name, load in parts.items():
        try:
            load()
            print("loaded", name)
        except ModelError as error:
            print("refused", name, error)
"""


@pytest.fixture(name="exported")
def export(tmp_path: Path) -> Path:
    """A good model directory."""
    model = tiny_model()
    model.export(model.build(pretrained=False).state_dict(), tmp_path / "model")
    return tmp_path / "model"


def _with_code(directory: Path, marker: Path, *, model_type: str) -> None:
    """Have every part of the model at `directory` name code that makes `marker`."""
    (directory / "modeling_x.py").write_text(_MODULE.format(marker=str(marker)))
    (directory / "custom_generate").mkdir()
    (directory / "custom_generate/generate.py").write_text(_MODULE.format(marker=str(marker)))
    _edit(
        directory / "config.json",
        model_type=model_type,
        auto_map={
            "AutoConfig": "modeling_x.XConfig",
            "AutoModelForCausalLM": "modeling_x.XModel",
        },
    )
    _edit(
        directory / "tokenizer_config.json",
        tokenizer_class="XTokenizer",
        auto_map={"AutoTokenizer": [None, "modeling_x.XTokenizer"]},
    )


def _edit(file: Path, **changes: object) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def _answering_yes(*argv: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {"HF_MODULES_CACHE": str(cwd / "modules"), "HF_HUB_OFFLINE": "1"}
    return subprocess.run(
        [*map(str, argv)],
        cwd=cwd,
        env=os.environ | environment | {"XDG_STATE_HOME": str(cwd / "state")},
        input="y\n" * 20,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


def test_no_part_of_a_model_runs_its_code_even_if_somebody_answers_yes(
    exported: Path, tmp_path: Path
) -> None:
    marker, known = tmp_path / "code_ran", tmp_path / "known"
    shutil.copytree(exported, known)
    _with_code(exported, marker, model_type="x")
    _with_code(known, marker, model_type="qwen3")

    finished = _answering_yes(sys.executable, "-c", _LOAD_EVERYTHING, exported, known, cwd=tmp_path)

    assert not marker.exists(), finished.stdout
    assert "[y/N]" not in finished.stdout + finished.stderr
    assert finished.stdout.count("executes no code that comes with a model") == 4, finished
    # For the type `qwen3` transformers has classes of its own, and uses those.
    assert finished.stdout.count("loaded") == 4, finished


def test_the_command_refuses_such_a_model_and_says_why(exported: Path, tmp_path: Path) -> None:
    marker = tmp_path / "code_ran"
    _with_code(exported, marker, model_type="x")

    finished = _answering_yes(
        *(BIN / "inference", "--model.type", "transformers", "--model.name", exported),
        *("--port", "0"),
        cwd=tmp_path,
    )

    assert not marker.exists()
    assert finished.returncode == 2, finished.stderr
    assert f"error: {exported}" in finished.stderr
    assert "executes no code that comes with a model" in finished.stderr
    assert "trust_remote_code=True" not in finished.stderr
    assert "Traceback" not in finished.stderr


@pytest.mark.parametrize("named_by", ["file", "index", "configuration"])
def test_pickled_weights_are_refused(exported: Path, named_by: str) -> None:
    weights = exported / "model.safetensors"
    tensors = load_file(weights)
    torch.save(tensors, exported / "pytorch_model.bin")
    weights.unlink()
    if named_by == "index":
        index = {"metadata": {}, "weight_map": dict.fromkeys(tensors, "pytorch_model.bin")}
        (exported / "model.safetensors.index.json").write_text(json.dumps(index))
    if named_by == "configuration":
        (exported / "adapter_model.bin").write_bytes((exported / "pytorch_model.bin").read_bytes())
        _edit(exported / "config.json", transformers_weights="adapter_model.bin")

    with pytest.raises(ModelError, match="safetensors"):
        load_causal_lm(str(exported), attention="sdpa")


def test_an_attention_kernel_of_the_hub_is_refused() -> None:
    with pytest.raises(ValueError, match="executes no code"):
        TransformersModelConfig(name="some/model", attention="someone/attention-kernel")


def test_an_export_names_no_code(exported: Path, tmp_path: Path) -> None:
    _edit(exported / "config.json", auto_map={"AutoModelForCausalLM": "modeling_x.XModel"})
    model = TransformersModel(TransformersModelConfig(name=str(exported)))

    model.export(model.build(pretrained=True).state_dict(), tmp_path / "again")

    for file in (tmp_path / "again").glob("*.json"):
        assert "auto_map" not in file.read_text(), file
