"""The distance between the canaries of engine and trainer, and how far a step moves either:

    python -m benchmarks.canary
    python -m benchmarks.canary --weights outputs/rl_reverse/weights/step_20

The bounds in `torchrl_ckpt/orchestrator/attestation.py` follow from these numbers. A trainer in
float32 and one that computes in bfloat16 publish a policy, and then the same policy with every
parameter moved up or down at random by a step. An engine in each dtype loads all of them and
computes the log-probabilities of the canary. Without `--weights` the model is that of the recipes
with random weights.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import statistics
import sys
import tempfile
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from tests.support.one_rank_world import one_rank_world
from torchrl_ckpt.config.section import PluginTable
from torchrl_ckpt.plugin_api.engines import Engine
from torchrl_ckpt.plugin_api.models import Model
from torchrl_ckpt.registry.loading import create
from torchrl_ckpt.run.directory import new_id
from torchrl_ckpt.run.patience import Patience
from torchrl_ckpt.run.progress import ProgressLog
from torchrl_ckpt.run.weight_store import Policy, WeightStore
from torchrl_ckpt.trainer.distributed import World
from torchrl_ckpt.trainer.publisher import CanaryOptions, Publisher

_RECIPES = Path(__file__).parents[1] / "recipes" / "reverse"
_TRAINERS = (torch.float32, torch.bfloat16)
_ENGINES = ("float32", "bfloat16", "float16")
_STEPS = (0.0, 1e-8, 1e-7, 1e-6, 1e-5, 1e-4, 3e-4, 1e-3, 3e-3)
_SEEDS = (0, 1, 2)

Logprobs = Sequence[Sequence[float]]


@dataclass(frozen=True)
class Published:
    """A policy of the weights drawn with `seed`, moved by `step`, and its directory."""

    seed: int
    step: float
    policy: Policy
    directory: Path


@dataclass(frozen=True)
class Moved:
    """Mean distances from the policy that was not moved, in nats, over the tokens of the canary."""

    trainer: float
    engine: float


def build_model(weights: Path | None) -> Model:
    """Return the model in `weights`, or else that of the recipes."""
    if weights is not None:
        return create("models", PluginTable(type="transformers", name=str(weights)))
    table = tomllib.loads((_RECIPES / "model.toml").read_text())
    table["tokenizer"] = str(_RECIPES / table["tokenizer"])
    return create("models", PluginTable(**table))


def publish(plugin: Model, dtype: torch.dtype, root: Path, world: World) -> Iterator[Published]:
    """Publish every step from every seed as a trainer that computes in `dtype`."""
    for seed, (version, step) in itertools.product(_SEEDS, enumerate(_STEPS)):
        torch.manual_seed(seed)
        module = plugin.build(pretrained=True)
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.add_(torch.randn_like(parameter).sign() * step)
        plugin.parallelize(module, world.mesh, param_dtype=dtype)
        weights = WeightStore(root / str(dtype) / str(seed))
        attempt_id = new_id()
        patience = Patience(0.0, "none", ProgressLog(root / "progress.jsonl", "trainer"))
        publisher = Publisher(
            plugin,
            module,
            weights,
            attempt_id=attempt_id,
            world=world,
            patience=patience,
            canary=CanaryOptions(seed=0, longest=128),
        )
        publisher.publish(version, last=False)
        policy = weights.read(version, attempt_id)
        assert policy is not None
        yield Published(seed, step, policy, weights.path(version))


async def engine_logprobs(engine: Engine, published: Sequence[Published]) -> list[Logprobs]:
    """Return the engine's log-probabilities of each policy's canary."""
    logprobs: list[Logprobs] = []
    for item in published:
        await engine.load_weights(item.directory)
        logprobs.append(await engine.logprobs(item.policy.canary.sequences))
    return logprobs


def compare(published: Sequence[Published], computed: Sequence[Logprobs], dtypes: str) -> None:
    """Print a row with the distances of engine and trainer, and one for each step."""
    distances = [
        difference
        for item, given in zip(published, computed, strict=True)
        for difference in differences(item.policy.canary.logprobs, given)
    ]
    print(
        f"| {dtypes} | equal weights | {statistics.fmean(distances):.1e} | {max(distances):.1e} | |"
    )
    origin: dict[int, tuple[Logprobs, Logprobs]] = {}
    moved: dict[float, list[Moved]] = {step: [] for step in _STEPS[1:]}
    for item, given in zip(published, computed, strict=True):
        expected = item.policy.canary.logprobs
        if item.step == 0:
            origin[item.seed] = expected, given
            continue
        trainer, engine = origin[item.seed]
        moved[item.step].append(
            Moved(
                statistics.fmean(differences(expected, trainer)),
                statistics.fmean(differences(given, engine)),
            )
        )
    for step, moves in moved.items():
        ratios = [move.engine / move.trainer for move in moves if move.trainer > 0]
        least = f"{min(ratios):.2f}" if ratios else "-"
        trainer_span = span([move.trainer for move in moves])
        engine_span = span([move.engine for move in moves])
        print(f"| {dtypes} | {step:.0e} | {trainer_span} | {engine_span} | {least} |")


def differences(first: Logprobs, second: Logprobs) -> list[float]:
    """Return the absolute differences of all tokens."""
    pairs = zip(itertools.chain(*first), itertools.chain(*second), strict=True)
    return [abs(a - b) for a, b in pairs]


def span(values: Sequence[float]) -> str:
    return f"{min(values):.1e} - {max(values):.1e}"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--weights", type=Path, help="a Hugging Face directory")
    parser.add_argument("--engine", default="transformers", help="the engine's name")
    parser.add_argument("--dtypes", nargs="+", default=_ENGINES, help="the engine's dtypes")
    arguments = parser.parse_args(argv)
    plugin = build_model(arguments.weights)
    print(
        "Equal weights: mean and largest distance of engine and trainer. A step: mean movement of "
        "the trainer's canary and of the engine's, over the seeds, and the smallest ratio.\n"
    )
    print("| trainer / engine | step | trainer, or mean | engine, or largest | ratio |")
    print("|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as root, one_rank_world() as world:
        for trainer in _TRAINERS:
            published = list(publish(plugin, trainer, Path(root), world))
            for dtype in arguments.dtypes:
                engine = create("engines", PluginTable(type=arguments.engine, dtype=dtype))
                engine.start(plugin, max_length=64, threads=0)
                computed = asyncio.run(engine_logprobs(engine, published))
                engine.close()
                compare(published, computed, f"{str(trainer).removeprefix('torch.')} / {dtype}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
