"""How far an engine's canary lies from the trainer's, and how far either moves with a step:

    python -m benchmarks.canary
    python -m benchmarks.canary --weights outputs/rl_reverse/weights/step_20

The bounds in `torchrl_ckpt/orchestrator/attestation.py` rest on this. A trainer in float32 and one
that computes in bfloat16 publish a policy, and then the same one with every number moved by a step,
up or down by chance; an engine in each dtype loads them all and answers. Without `--weights` the
model is the recipes' with random weights.
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

from tests.support.toy_training import one_rank
from torchrl_ckpt.config.section import PluginTable
from torchrl_ckpt.plugin_api.engines import Engine
from torchrl_ckpt.plugin_api.models import Model
from torchrl_ckpt.registry.loading import create
from torchrl_ckpt.run.weight_store import Policy, WeightStore
from torchrl_ckpt.trainer.distributed import World
from torchrl_ckpt.trainer.publisher import Publisher

_RECIPES = Path(__file__).parents[1] / "recipes" / "reverse"
_TRAINERS = (torch.float32, torch.bfloat16)
_ENGINES = ("float32", "bfloat16", "float16")
_STEPS = (0.0, 1e-8, 1e-7, 1e-6, 1e-5, 1e-4, 3e-4, 1e-3, 3e-3)
_SEEDS = (0, 1, 2)

Logprobs = Sequence[Sequence[float]]


@dataclass(frozen=True)
class Published:
    """A policy, moved from the one with random number `seed` by `step`, and where it is."""

    seed: int
    step: float
    policy: Policy
    directory: Path


@dataclass(frozen=True)
class Moved:
    """Mean distances in nats, over the canary's tokens, from the policy that was not moved."""

    trainer: float
    engine: float


def recipes_model(weights: Path | None) -> Model:
    """The model of the recipes, or what is in `weights`."""
    if weights is not None:
        return create("models", PluginTable(type="transformers", name=str(weights)))
    table = tomllib.loads((_RECIPES / "model.toml").read_text())
    table["tokenizer"] = str(_RECIPES / table["tokenizer"])
    return create("models", PluginTable(**table))


def publish(plugin: Model, dtype: torch.dtype, root: Path, world: World) -> Iterator[Published]:
    """Every step from every seed, as a trainer that computes in `dtype` publishes it."""
    for seed, (version, step) in itertools.product(_SEEDS, enumerate(_STEPS)):
        torch.manual_seed(seed)
        module = plugin.build(pretrained=True)
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.add_(torch.randn_like(parameter).sign() * step)
        plugin.parallelize(module, world.mesh, param_dtype=dtype)
        weights = WeightStore(root / str(dtype) / str(seed))
        publisher = Publisher(plugin, module, weights, attempt=1, world=world)
        publisher.publish(version, last=False)
        policy = weights.read(version, attempt=1)
        assert policy is not None
        yield Published(seed, step, policy, weights.path(version))


async def answer(engine: Engine, published: Sequence[Published]) -> list[Logprobs]:
    answers: list[Logprobs] = []
    for one in published:
        await engine.load_weights(one.directory)
        answers.append(await engine.logprobs(one.policy.canary.sequences))
    return answers


def compare(published: Sequence[Published], answers: Sequence[Logprobs], about: str) -> None:
    """Print a row for how far the answers lie from the trainer's, and one for each step."""
    away = [
        difference
        for one, given in zip(published, answers, strict=True)
        for difference in differences(one.policy.canary.logprobs, given)
    ]
    print(f"| {about} | equal weights | {statistics.fmean(away):.1e} | {max(away):.1e} | |")
    origin: dict[int, tuple[Logprobs, Logprobs]] = {}
    moved: dict[float, list[Moved]] = {step: [] for step in _STEPS[1:]}
    for one, given in zip(published, answers, strict=True):
        trainers = one.policy.canary.logprobs
        if one.step == 0:
            origin[one.seed] = trainers, given
            continue
        trainer, engine = origin[one.seed]
        moved[one.step].append(
            Moved(
                statistics.fmean(differences(trainers, trainer)),
                statistics.fmean(differences(given, engine)),
            )
        )
    for step, found in moved.items():
        ratios = [one.engine / one.trainer for one in found if one.trainer > 0]
        least = f"{min(ratios):.2f}" if ratios else "-"
        trainer_span = span([one.trainer for one in found])
        engine_span = span([one.engine for one in found])
        print(f"| {about} | {step:.0e} | {trainer_span} | {engine_span} | {least} |")


def differences(one: Logprobs, other: Logprobs) -> list[float]:
    pairs = zip(itertools.chain(*one), itertools.chain(*other), strict=True)
    return [abs(first - second) for first, second in pairs]


def span(values: Sequence[float]) -> str:
    return f"{min(values):.1e} - {max(values):.1e}"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--weights", type=Path, help="a Hugging Face directory")
    parser.add_argument("--engine", default="transformers", help="the engine's name")
    parser.add_argument("--dtypes", nargs="+", default=_ENGINES, help="the engine's dtypes")
    arguments = parser.parse_args(argv)
    plugin = recipes_model(arguments.weights)
    print(
        "Equal weights: mean and largest distance of engine and trainer. A step: mean movement of "
        "the trainer's canary and of the engine's, over the seeds, and the smallest ratio.\n"
    )
    print("| trainer / engine | step | trainer, or mean | engine, or largest | ratio |")
    print("|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as root, one_rank() as world:
        for trainer in _TRAINERS:
            published = list(publish(plugin, trainer, Path(root), world))
            for dtype in arguments.dtypes:
                engine = create("engines", PluginTable(type=arguments.engine, dtype=dtype))
                engine.start(plugin, max_length=64, threads=0)
                answers = asyncio.run(answer(engine, published))
                engine.close()
                compare(published, answers, f"{str(trainer).removeprefix('torch.')} / {dtype}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
