"""A server that serves other weights than it reports is caught before a rollout is used."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import httpx
import pytest

from tests.support.faulty_proxy import FaultyProxy, is_generation
from tests.support.inference_server import AUTHORIZED
from tests.support.restartable_server import RestartableServer
from tests.support.rollouts import ATTEMPT_ID
from tests.support.tiny_model import TOKENIZER, tiny_model
from torchrl_ckpt.config.orchestrator import OrchestratorConfig
from torchrl_ckpt.orchestrator.main import orchestrate
from torchrl_ckpt.plugin_api.errors import UserError, WaitTimeout, WrongPolicy
from torchrl_ckpt.run.attempt import Attempt

WORDS = TOKENIZER.parent / "words.txt"


@pytest.fixture(name="run")
def copy_published_run(published_run: Path, request: pytest.FixtureRequest) -> Path:
    """The test's own run, whose trainer has published the policies 0 and 1."""
    run = published_run.parent / re.sub(r"\W", "_", request.node.name)
    shutil.copytree(published_run, run)
    (run / "logs/attempt_1").mkdir(parents=True)
    return run


def error_of_orchestrator(run: Path, base_url: str) -> UserError:
    """Run an orchestrator until it fails; without a trainer it always does."""
    model = tiny_model().config.model_dump(exclude_defaults=True)
    config = OrchestratorConfig(
        output_dir=run,
        model={"type": "transformers", **model},
        environment={"type": "reverse_text", "text": str(WORDS)},
        prompts_per_step=4,
        samples_per_prompt=2,
        async_level=1,
        evaluation=None,
        client={"base_url": base_url, "timeout": 300},
        policy_timeout=0.1,
    )
    attempt = Attempt(
        output_dir=run,
        id=ATTEMPT_ID,
        number=1,
        max_steps=config.max_steps,
        resume_step=None,
        ckpt=None,
    )
    with pytest.raises(UserError) as caught:
        orchestrate(config, attempt, None)
    return caught.value


def rollouts(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "rollouts").iterdir())


def test_the_rollouts_of_an_honest_server_are_used(
    run: Path, honest_server: RestartableServer
) -> None:
    # Steps 1 and 2 are by policy 0, step 3 by policy 1; that one means that batch 1 is used:
    # the last one that is stays.
    assert isinstance(error_of_orchestrator(run, honest_server.base_url), WaitTimeout)
    assert rollouts(run) == ["step_1", "step_2", "step_3"]


@pytest.mark.parametrize(
    ("lie", "message"),
    [
        ("old weights", "differ from the trainer's by more than 1e-04 nats"),
        ("half of the weights", "differ from the trainer's by more than 1e-04 nats"),
        ("half, with an honest digest", "the digest of its weights is xxh3-128 of float32:"),
        ("a load that raises", "half-way"),
    ],
)
def test_a_server_that_did_not_load_the_policy_is_caught(
    run: Path, honest_server: RestartableServer, lie: str, message: str
) -> None:
    honest_server.lie(lie)
    error = error_of_orchestrator(run, honest_server.base_url)
    assert isinstance(error, WrongPolicy)
    assert "does not serve the policy of step 0 after 2 tries" in str(error)
    assert message in str(error)
    assert rollouts(run) == []


def test_weights_that_another_job_loads_after_the_attestation_are_caught(
    run: Path, proxy: FaultyProxy
) -> None:
    def load_other_weights(method: str, path: str, body: bytes) -> None:
        if is_generation(path, body):
            httpx.post(
                f"{proxy.target_url}/weights",
                json={"directory": str(run / "weights/step_1"), "version": 0},
                headers=AUTHORIZED,
                timeout=60,
                trust_env=False,
            ).raise_for_status()

    proxy.fault = load_other_weights
    error = error_of_orchestrator(run, proxy.base_url)
    assert isinstance(error, WrongPolicy)
    assert "other weights than those that were verified. Another job may be using it" in str(error)
    assert rollouts(run) == []
