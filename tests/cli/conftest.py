"""A run with three real checkpoints of a tiny model, made once and copied for each test."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from torchrl_ckpt.checkpoint.commit import commit, request, wait_for_parts
from torchrl_ckpt.checkpoint.layout import MODEL, OPTIM, STATE, TENSORS, TRAINER, Layout
from torchrl_ckpt.checkpoint.part import finish_part, open_part
from torchrl_ckpt.cli.exit import exit_code_of
from torchrl_ckpt.cli.main import _main
from torchrl_ckpt.config.section import PluginTable
from torchrl_ckpt.plugin_api.checkpoint_backends import FileRecord
from torchrl_ckpt.plugin_api.durable_files import record_json, write_json
from torchrl_ckpt.registry.loading import create
from torchrl_ckpt.run.metrics import MetricsLog

TOKENIZER = Path(__file__).parents[2] / "recipes/reverse/tokenizer"

RECIPE: dict[str, Any] = {
    "max_steps": 6,
    "seed": 0,
    "ranks": 1,
    "model": {
        "type": "transformers",
        "architecture": "qwen3",
        "tokenizer": str(TOKENIZER),
        "config": {
            "num_hidden_layers": 1,
            "hidden_size": 16,
            "intermediate_size": 32,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "head_dim": 8,
        },
    },
    "loss": {"type": "cross_entropy"},
    "ckpt": {"directory": "checkpoints", "backend": {"type": "dcp"}, "resume_step": None},
}


def attempt(root: Path) -> dict[str, Any]:
    """The attempt in `resolved.json`, as the launcher writes it."""
    return {
        "output_dir": str(root),
        "number": 1,
        "max_steps": RECIPE["max_steps"],
        "resume_step": None,
        "ckpt": {key: value for key, value in RECIPE["ckpt"].items() if key != "resume_step"},
    }


LOSSES = {2: 0.3, 4: 0.2, 6: 0.9}


@dataclass(frozen=True)
class Done:
    """What a command printed and how it ended."""

    code: int
    out: str
    err: str


@pytest.fixture
def ckpt(capsys: pytest.CaptureFixture[str]) -> Callable[..., Done]:
    """`torchrl-ckpt ckpt`, with these arguments."""

    def call(*arguments: object) -> Done:
        capsys.readouterr()
        code = exit_code_of(lambda: _main(["ckpt", *map(str, arguments)]))
        return Done(code, *capsys.readouterr())

    return call


@pytest.fixture
def run(made: Path, tmp_path: Path) -> Path:
    """A run of one's own, with the steps 2, 4 and 6."""
    return shutil.copytree(made, tmp_path / "run")


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("ckpt") / "run"
    root.mkdir()
    write_json(
        root / "resolved.json", {"command": "sft", "attempt": attempt(root), "recipe": RECIPE}
    )
    metrics = MetricsLog(root / "metrics.jsonl")
    layout = Layout(root / RECIPE["ckpt"]["directory"])
    store = dist.FileStore(str(root.parent / "store"), 1)
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    for step, loss in LOSSES.items():
        _save(layout, step)
        metrics.write("trainer", step, {"loss": loss})
    dist.destroy_process_group()
    return root


def _save(layout: Layout, step: int) -> None:
    partial = request(layout, step, [TRAINER])
    part = open_part(partial, TRAINER)
    backend = create("checkpoint_backends", PluginTable(type="dcp"))
    save = backend.save(_tensors(step), part / TENSORS, dist.group.WORLD)
    records = [
        FileRecord(f"{TENSORS}/{file.path}", file.size, file.digest)
        for file in save.wait_written().files
    ]
    progress = {"step": step, "samples": 8 * step, "tokens": 64 * step}
    records.append(record_json(part, STATE, {"progress": progress, "optimizer": {"lr": 0.5}}))
    records.append(record_json(part, "rng/rank_0.json", {"torch": "ab" * 40 + f"{step:02x}"}))
    finish_part(part, records)
    plugin = {"name": "dcp", "distribution": "torchrl-ckpt", "version": "0.1.0"}
    about = {
        "progress": progress,
        "world_size": 1,
        "versions": {"torch": torch.__version__},
        "plugins": {"checkpoint_backends": plugin},
        "command": "sft",
        "recipe": RECIPE,
    }
    commit(layout, step, [TRAINER], wait_for_parts(partial, [TRAINER], timeout=1), about)


def _tensors(step: int) -> dict[str, torch.Tensor]:
    """A model that grows by `step` in one tensor, and an optimiser of one."""
    torch.manual_seed(0)
    model = create("models", PluginTable(**RECIPE["model"])).build(pretrained=False)
    tensors = {MODEL + name: tensor for name, tensor in model.state_dict().items()}
    tensors["model.model.norm.weight"] = torch.ones(16) + step
    return {**tensors, f"{OPTIM}state.norm.step": torch.tensor(7.0)}
