"""The data set of a recipe for supervised fine-tuning, checked before the first step."""

from __future__ import annotations

from collections.abc import Callable

from torchrl_ckpt.config.length_limit import model_limit, row_limit, smallest
from torchrl_ckpt.config.sft_recipe import SftDataConfig, SftRecipe
from torchrl_ckpt.plugin_api.models import Model
from torchrl_ckpt.registry.loading import create
from torchrl_ckpt.run.progress import Finding, ProgressLog
from torchrl_ckpt.trainer.distributed import World
from torchrl_ckpt.trainer.sample_check import FittingSamples, SampleCheck
from torchrl_ckpt.trainer.sft_samples import DataSet, EnvironmentSamples, FileSamples


def checked_samples(
    config: SftRecipe, plugin: Model, world: World, progress: ProgressLog
) -> FittingSamples:
    """Check the data set, of which each rank takes a share; return the samples to train on.

    Raises `DataError` and `EnvironmentFailed`.
    """
    check, size = _sample_check(config, plugin)
    share = range(world.rank, size, world.size)
    if world.is_rank_zero:
        with progress.task("checking samples", total=len(share)) as task:
            scan = check.scan(share, task.update)
    else:
        scan = check.scan(share, lambda number: None)
    samples, findings = check.conclude(world.gather(scan))
    if world.is_rank_zero:
        progress.report([*findings, *_batch_findings(config.data, len(samples))])
    return samples


def check_data(config: SftRecipe, on_progress: Callable[[int, int], None]) -> list[Finding]:
    """Check the data set in this process alone. Raises as `checked_samples` does.

    `on_progress` is called with the numbers of samples that are checked, and that there are.
    """
    check, size = _sample_check(config, create("models", config.model))
    scan = check.scan(range(size), lambda number: on_progress(number, size))
    samples, findings = check.conclude([scan])
    return [*findings, *_batch_findings(config.data, len(samples))]


def _sample_check(config: SftRecipe, plugin: Model) -> tuple[SampleCheck, int]:
    """The check of the recipe's data set, and the number of samples in it."""
    data = config.data
    samples: DataSet
    if data.environment is not None:
        environment = create("environments", data.environment)
        samples = EnvironmentSamples(environment, plugin.tokenizer())
    else:
        samples = FileSamples(data.files, plugin.tokenizer())
    limit = smallest(row_limit(config.packing), model_limit(plugin))
    assert limit is not None
    return SampleCheck(samples, limit, data.too_long), len(samples)


def _batch_findings(data: SftDataConfig, num_samples: int) -> list[Finding]:
    if data.batch_size <= num_samples:
        return []
    text = (
        f"`data.batch_size` is {data.batch_size:,} and there are {num_samples:,} samples: a step "
        "has some of them several times"
    )
    return [Finding(text, "warning")]
