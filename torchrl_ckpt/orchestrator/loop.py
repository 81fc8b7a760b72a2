"""The orchestrator's loop: policy, problems, rollouts, advantages, batch; step after step.

Step n trains on what the policy of step max(0, n - 1 - async_level) generated. This is exact, not
a bound, and is why a run does not depend on which process was faster.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from torchrl_ckpt.checkpoint.layout import Layout
from torchrl_ckpt.checkpoint.rollout_part import ORCHESTRATOR
from torchrl_ckpt.config.orchestrator import OrchestratorConfig, SamplingConfig
from torchrl_ckpt.orchestrator.advantages import share_without_signal
from torchrl_ckpt.orchestrator.attestation import Attestation
from torchrl_ckpt.orchestrator.evaluation import Evaluator
from torchrl_ckpt.orchestrator.rollout_generator import RolloutGenerator, rollout_metrics
from torchrl_ckpt.orchestrator.server_pool import ServerPool
from torchrl_ckpt.orchestrator.state import OrchestratorState
from torchrl_ckpt.run.attempt import Attempt
from torchrl_ckpt.run.metrics import MetricsLog, values_by_step
from torchrl_ckpt.run.patience import Patience
from torchrl_ckpt.run.polling import Deadline, wait_for_async
from torchrl_ckpt.run.progress import ProgressLog
from torchrl_ckpt.run.rollout_store import BatchMetadata, RolloutStore
from torchrl_ckpt.run.weight_store import Policy, WeightStore

_LOOK_SECONDS = 0.5


class _TrainingEnded(Exception):
    """The trainer has ended before its first step."""


class Loop:
    """Generates the batches of the attempt's steps, and answers checkpoint requests."""

    def __init__(
        self,
        config: OrchestratorConfig,
        attempt: Attempt,
        state: OrchestratorState,
        pool: ServerPool,
        generator: RolloutGenerator,
        evaluator: Evaluator | None,
        progress: ProgressLog,
    ) -> None:
        self._config = config
        self._attempt = attempt
        self._state = state
        self._pool = pool
        self._generator = generator
        self._evaluator = evaluator
        self._progress = progress
        self._num_without_signal = 0
        self._served: tuple[int, Attestation] | None = None
        self._run = run = attempt.run
        self._weights = WeightStore(run.weights)
        self._rollouts = RolloutStore(run.rollouts)
        self._layout = Layout.of_run(run.root, attempt.ckpt) if attempt.ckpt else None
        self._metrics = MetricsLog(run.metrics)
        self._patience = Patience(config.publish_timeout, "orchestrator.publish_timeout", progress)

    async def run(self, carried: Sequence[Path]) -> None:
        """Restore the `carried` batches (directories of a checkpoint), then generate.

        Returns once the trainer has published its last policy.
        """
        self._rollouts.clear()
        for directory in carried:
            self._log_metrics(self._rollouts.restore(directory, self._attempt.id))
        # A checkpoint of the last step carries what a longer run would train on next.
        ahead = self._config.async_level if self._attempt.ckpt is not None else 0
        for step in range(self._state.generated.step + 1, self._attempt.max_steps + ahead + 1):
            version = max(0, step - 1 - self._config.async_level)
            try:
                async with self._until_last():
                    policy, attestation = await self._serve(version)
                    if not policy.last:
                        await self._generate(step, policy, attestation)
            except _TrainingEnded:
                return
            if policy.last:
                return
        await self._serve(self._attempt.max_steps)

    @asynccontextmanager
    async def _until_last(self) -> AsyncIterator[None]:
        """Run the block; raise `_TrainingEnded` as soon as training has ended without any step.

        Nobody needs what the block makes then, and no checkpoint needs this state. The block may
        wait for a server that is not there.
        """
        block = asyncio.current_task()
        assert block is not None
        ended = False

        async def watch() -> None:
            nonlocal ended
            while True:
                await asyncio.sleep(_LOOK_SECONDS)
                last = self._weights.last(self._attempt.id)
                if (self._run.stop.exists() and self._run.starting.exists()) or (
                    last is not None and last.version == (self._attempt.resume_step or 0)
                ):
                    ended = True
                    block.cancel()
                    return

        watching = asyncio.create_task(watch())
        try:
            yield
        except asyncio.CancelledError:
            if not ended:
                raise
            block.uncancel()
            raise _TrainingEnded from None
        finally:
            watching.cancel()

    async def _serve(self, version: int) -> tuple[Policy, Attestation]:
        """Wait for a policy, answer the checkpoint requests due before it is used, and serve it.

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
            attestation = await self._pool.serve(policy, self._weights.path(policy.version))
            self._served = policy.version, attestation
            # Its existence means that the batches up to it are trained on. The last of them stays:
            # it has the state that belongs to a checkpoint of this policy's step.
            self._weights.delete_before(policy.version)
            self._rollouts.delete_before(policy.version)
            await self._evaluate(policy)
        return policy, self._served[1]

    def _published(self, version: int) -> Policy | None:
        # Look for the last policy first: if it appears only after that, `version` exists by now.
        last = self._weights.last(self._attempt.id)
        return self._weights.read(version, self._attempt.id) or last

    async def _evaluate(self, policy: Policy) -> None:
        evaluated = values_by_step(self._run.metrics, "evaluation", "reward/mean")
        if policy.version in evaluated:  # By the attempt that this one resumes.
            return
        if self._evaluator is not None and self._evaluator.is_due(
            policy.version, last=policy.last and policy.version == self._attempt.max_steps
        ):
            row = await self._evaluator.evaluate()
            self._metrics.write("evaluation", policy.version, row)

    async def _generate(self, step: int, policy: Policy, attestation: Attestation) -> None:
        """Generate the batch of `step` and hand it to the trainer."""
        config = self._config
        indices = self._state.problems.take(config.prompts_per_step)
        total = len(indices) * config.samples_per_prompt
        started = time.perf_counter()
        with self._progress.task("rollouts", total=total) as task:
            rollouts = await self._generator.generate(
                "train",
                indices,
                config.sampling,
                num_samples=config.samples_per_prompt,
                seed=f"{config.seed}/{step}",
                on_progress=task.update,
            )
        seconds = time.perf_counter() - started
        num_tokens = sum(len(rollout.completion) for rollout in rollouts)
        self._state.count(step, len(indices), len(rollouts), num_tokens)
        rewards = [rollout.reward for rollout in rollouts]
        without_signal = share_without_signal(rewards, config.samples_per_prompt)
        if without_signal == 1:
            self._warn_without_signal(step, rewards)
        metadata = BatchMetadata(
            step=step,
            attempt_id=self._attempt.id,
            policy_version=policy.version,
            temperature=config.sampling.temperature,
            engine_dtype=attestation.dtype,
            truncation=_truncation(config.sampling),
            state=self._state.to_json(),
            metrics={
                **rollout_metrics(rollouts),
                "reward/no_signal": without_signal,
                "policy_version": policy.version,
                "canary/mean_difference": attestation.mean_difference,
                "canary/max_difference": attestation.max_difference,
                "generate_seconds": seconds,
                "tokens_per_second": num_tokens / seconds,
            },
        )
        await self._patience.write_async(
            lambda: self._rollouts.write(metadata, rollouts), f"the rollouts of step {step}"
        )
        self._log_metrics(metadata)

    def _warn_without_signal(self, step: int, rewards: Sequence[float]) -> None:
        """Warn of the first, second, fourth, eighth ... step that teaches nothing."""
        self._num_without_signal += 1
        if self._num_without_signal.bit_count() > 1:
            return
        values = (
            f"all {rewards[0]:g}"
            if min(rewards) == max(rewards)
            else "they differ between problems only"
        )
        cause = (
            "at `sampling.temperature` = 0 the completions of a problem are all the same"
            if self._config.sampling.temperature == 0
            else "see whether the environment scores as intended, and its problems are neither too "
            "hard nor too easy"
        )
        self._progress.message(
            f"step {step} teaches nothing: the rewards of each problem's completions are equal "
            f"({values}). Steps of this kind so far: {self._num_without_signal}; {cause}",
            "warning",
        )

    def _log_metrics(self, batch: BatchMetadata) -> None:
        # A batch that no step of this run trains on belongs to the checkpoint only.
        if batch.step <= self._attempt.max_steps:
            self._metrics.write(ORCHESTRATOR, batch.step, batch.metrics)


def _truncation(sampling: SamplingConfig) -> float | None:
    """By how much (nats) sampling from the likeliest tokens alone may raise log-probabilities; None
    where that has no bound."""
    if sampling.temperature == 0:  # Log-probabilities are then those of the whole distribution.
        return 0.0
    return None if sampling.top_k else -math.log(sampling.top_p)
