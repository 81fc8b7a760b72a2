"""The orchestrator's loop: policy, problems, rollouts, advantages, batch; step after step.

Step n trains on what the policy of step max(0, n - 1 - async_level) generated. This is exact, not
a bound, and is why a run does not depend on which process was faster.
"""

from __future__ import annotations

import logging
import time

from torchrl_ckpt.checkpoint.layout import Layout
from torchrl_ckpt.config.orchestrator import OrchestratorConfig
from torchrl_ckpt.orchestrator.advantages import group_advantages
from torchrl_ckpt.orchestrator.attestation import Attested
from torchrl_ckpt.orchestrator.evaluation import Evaluator
from torchrl_ckpt.orchestrator.rollout_generator import RolloutGenerator
from torchrl_ckpt.orchestrator.scoring import Scored, summary
from torchrl_ckpt.orchestrator.server_pool import ServerPool
from torchrl_ckpt.orchestrator.state import COMPONENT, OrchestratorState
from torchrl_ckpt.plugin_api.environments import Environment, Problem
from torchrl_ckpt.run.attempt import Attempt
from torchrl_ckpt.run.metrics import MetricsLog, values_by_step
from torchrl_ckpt.run.polling import Deadline, wait_for_async
from torchrl_ckpt.run.progress import ProgressLog
from torchrl_ckpt.run.rollout_store import Rollout, RolloutBatch, RolloutStore
from torchrl_ckpt.run.weight_store import Policy, WeightStore

_log = logging.getLogger(__name__)


class Loop:
    """Generates the batches of the attempt's steps, and answers checkpoint requests."""

    def __init__(
        self,
        config: OrchestratorConfig,
        attempt: Attempt,
        environment: Environment,
        state: OrchestratorState,
        pool: ServerPool,
        generator: RolloutGenerator,
        evaluator: Evaluator | None,
        *,
        progress: ProgressLog,
    ) -> None:
        self._config = config
        self._environment = environment
        self._state = state
        self._pool = pool
        self._generator = generator
        self._evaluator = evaluator
        self._served: tuple[int, Attested] | None = None
        self._attempt = attempt
        self._run = run = attempt.run
        self._weights = WeightStore(run.weights)
        self._rollouts = RolloutStore(run.rollouts)
        self._layout = Layout.of_run(run.root, attempt.ckpt) if attempt.ckpt else None
        self._metrics = MetricsLog(run.metrics)
        self._progress = progress

    async def run(self, carried: list[RolloutBatch]) -> None:
        """Hand on the `carried` batches of a checkpoint, then generate. Returns when the trainer
        has published its last policy."""
        self._rollouts.clear()
        for batch in carried:
            self._deliver(batch)
        # A checkpoint of the last step carries what a longer run would have trained on next.
        ahead = self._config.async_level if self._attempt.ckpt is not None else 0
        for step in range(self._state.progress.step + 1, self._attempt.max_steps + ahead + 1):
            wanted = max(self._attempt.resume_step or 0, step - 1 - self._config.async_level)
            policy, attested = await self._serve(wanted)
            if policy.last:
                return
            self._deliver(await self._generate(step, policy, attested))
        await self._serve(self._attempt.max_steps)

    async def _serve(self, version: int) -> tuple[Policy, Attested]:
        """Wait for a policy, do what is to be done at its boundary, and have it served.

        Where training ended early, this is the policy that it ended with.
        """
        with self._progress.task(f"waiting for policy {version}"):
            policy = await wait_for_async(
                lambda: self._published(version),
                f"the policy of step {version} in {self._weights.root}",
                Deadline(self._config.policy_timeout, "orchestrator.policy_timeout"),
            )
        if self._layout is not None:
            self._state.answer_requests(self._layout, self._rollouts)
        if self._served is None or self._served[0] != policy.version:
            attested = await self._pool.serve(policy, self._weights.path(policy.version))
            self._served = policy.version, attested
            # Its existence means that the batches up to it are trained on.
            self._weights.forget(before=policy.version)
            self._rollouts.forget(through_step=policy.version)
            await self._evaluate(policy)
        return policy, self._served[1]

    def _published(self, version: int) -> Policy | None:
        # The last one is looked for first: if it appears only then, so has `version` by now.
        last = self._weights.last(self._attempt.number)
        return self._weights.read(version, self._attempt.number) or last

    async def _evaluate(self, policy: Policy) -> None:
        done = values_by_step(self._run.metrics, "evaluation", "reward/mean")
        if policy.version in done:  # By the attempt that this one goes on from.
            return
        if self._evaluator is not None and self._evaluator.is_due(
            policy.version, last=policy.last and policy.version == self._attempt.max_steps
        ):
            row = await self._evaluator.evaluate()
            self._metrics.write("evaluation", policy.version, row)

    async def _generate(self, step: int, policy: Policy, attested: Attested) -> RolloutBatch:
        config = self._config
        indices = self._state.problems.take(config.prompts_per_step)
        problems = [self._environment.problem("train", index) for index in indices]
        total = len(problems) * config.samples_per_prompt
        began = time.perf_counter()
        with self._progress.task("rollouts", total=total) as task:
            groups = await self._generator.complete(
                problems,
                config.sampling,
                num_samples=config.samples_per_prompt,
                seed=f"{config.seed}/{step}",
                on_progress=task.update,
            )
        seconds = time.perf_counter() - began
        rollouts = [
            rollout for group in groups for rollout in self._rollouts_of(group, policy.version)
        ]
        tokens = sum(len(rollout.completion) for rollout in rollouts)
        self._count(step, problems, rollouts, tokens)
        return RolloutBatch(
            step=step,
            attempt=self._attempt.number,
            policy_version=policy.version,
            temperature=config.sampling.temperature,
            rollouts=rollouts,
            metrics={
                **summary(groups),
                "policy_version": policy.version,
                "canary/mean_difference": attested.mean_difference,
                "canary/max_difference": attested.max_difference,
                "generate_seconds": seconds,
                "tokens_per_second": tokens / seconds,
            },
        )

    def _rollouts_of(self, group: list[Scored], policy_version: int) -> list[Rollout]:
        rewards = [one.score.reward for one in group]
        advantages = group_advantages(rewards, self._config.advantage)
        return [
            Rollout(
                problem=one.problem.id,
                prompt=one.prompt,
                completion=list(one.sample.token_ids),
                logprobs=list(one.sample.logprobs),
                reward=one.score.reward,
                advantage=advantage,
                policy_version=policy_version,
                load=one.load,
            )
            for one, advantage in zip(group, advantages, strict=True)
        ]

    def _count(
        self, step: int, problems: list[Problem], rollouts: list[Rollout], tokens: int
    ) -> None:
        progress = self._state.progress
        progress.step = step
        progress.problems += len(problems)
        progress.samples += len(rollouts)
        progress.tokens += tokens

    def _deliver(self, batch: RolloutBatch) -> None:
        self._rollouts.write(batch)
        # A batch that no step of this run trains on belongs to the checkpoint alone.
        if batch.step <= self._attempt.max_steps:
            self._metrics.write(COMPONENT, batch.step, batch.metrics)
