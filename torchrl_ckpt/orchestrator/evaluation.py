"""Evaluates a policy on held-out problems, which it is never trained on."""

from __future__ import annotations

from torchrl_ckpt.config.orchestrator import EvaluationConfig, SamplingConfig
from torchrl_ckpt.orchestrator.rollout_generator import RolloutGenerator, rollout_metrics
from torchrl_ckpt.plugin_api.checked_environment import CheckedEnvironment
from torchrl_ckpt.plugin_api.errors import RecipeError
from torchrl_ckpt.run.progress import ProgressLog


class Evaluator:
    """Uses the same problems and the same noise every time, so that only the policy differs.

    `sampling` is used unless `config` has its own. Raises as `num_evaluated` does.
    """

    def __init__(
        self,
        config: EvaluationConfig,
        environment: CheckedEnvironment,
        generator: RolloutGenerator,
        sampling: SamplingConfig,
        progress: ProgressLog,
        *,
        seed: int,
    ) -> None:
        self._num_problems = num_evaluated(config, environment)
        self._config = config
        self._generator = generator
        self._sampling = config.sampling or sampling
        self._progress = progress
        self._seed = seed

    def is_due(self, step: int, *, last: bool) -> bool:
        """Whether to evaluate the policy of `step`: step 0, the last one, every `interval`-th."""
        interval = self._config.interval
        return step == 0 or last or (interval is not None and step % interval == 0)

    async def evaluate(self) -> dict[str, float]:
        """Return the means of reward and metrics for the policy that is being served."""
        num_samples = self._config.samples_per_problem
        total = self._num_problems * num_samples
        with self._progress.task("evaluation", total=total) as task:
            rollouts = await self._generator.generate(
                "eval",
                range(self._num_problems),
                self._sampling,
                num_samples=num_samples,
                seed=f"evaluation/{self._seed}",
                on_progress=task.update,
            )
        return {**rollout_metrics(rollouts), "problems": self._num_problems}


def num_evaluated(config: EvaluationConfig, environment: CheckedEnvironment) -> int:
    """Return the number of problems to evaluate on.

    Raises `RecipeError` where the environment has none, or has no limit and `config` sets none.
    """
    size = environment.size("eval")
    if size == 0:
        raise RecipeError(
            f"environment `{environment.name}` has no problems to evaluate on: switch evaluation "
            "off (`--no-orchestrator.evaluation`)"
        )
    count = config.num_problems or size
    if count is None:
        raise RecipeError(
            "this environment generates any number of problems: set how many to evaluate on "
            "with `orchestrator.evaluation.num_problems`"
        )
    return count if size is None else min(count, size)
