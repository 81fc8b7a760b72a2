"""Scores a policy on problems that it is never trained on."""

from __future__ import annotations

from torchrl_ckpt.config.orchestrator import EvaluationConfig, SamplingConfig
from torchrl_ckpt.orchestrator.rollout_generator import RolloutGenerator
from torchrl_ckpt.orchestrator.scoring import summary
from torchrl_ckpt.plugin_api.environments import Environment
from torchrl_ckpt.plugin_api.errors import RecipeError
from torchrl_ckpt.run.progress import ProgressLog


class Evaluator:
    """The same held-out problems and the same noise every time, so that only the policy differs."""

    def __init__(
        self,
        config: EvaluationConfig,
        environment: Environment,
        generator: RolloutGenerator,
        sampling: SamplingConfig,
        progress: ProgressLog,
        *,
        seed: int,
    ) -> None:
        size = environment.size("eval")
        count = config.num_problems or size
        if count is None:
            raise RecipeError(
                "this environment makes problems without end: say how many to evaluate on with "
                "`orchestrator.evaluation.num_problems`"
            )
        numbers = range(count if size is None else min(count, size))
        self._problems = [environment.problem("eval", number) for number in numbers]
        self._config = config
        self._generator = generator
        self._sampling = config.sampling or sampling
        self._progress = progress
        self._seed = seed

    def is_due(self, step: int, *, last: bool) -> bool:
        """Before the first step, after the last, and every `interval` steps."""
        interval = self._config.interval
        return step == 0 or last or (interval is not None and step % interval == 0)

    async def evaluate(self) -> dict[str, float]:
        """Mean reward and metrics of the policy that is being served."""
        total = len(self._problems) * self._config.samples_per_problem
        with self._progress.task("evaluation", total=total) as task:
            groups = await self._generator.complete(
                self._problems,
                self._sampling,
                num_samples=self._config.samples_per_problem,
                seed=f"evaluation/{self._seed}",
                on_progress=task.update,
            )
        return {**summary(groups), "problems": len(self._problems)}
