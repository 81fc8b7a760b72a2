"""A server that serves other weights than it says is caught before a rollout is used."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.orchestrator.conftest import Server
from tests.support.tiny_model import TOKENIZER, tiny_model
from torchrl_ckpt.config.orchestrator import OrchestratorConfig
from torchrl_ckpt.orchestrator.main import orchestrate
from torchrl_ckpt.plugin_api.errors import UserError, WaitTimeout, WrongPolicy

WORDS = TOKENIZER.parent / "words.txt"


def refusal(run_directory: Path, server: Server) -> UserError:
    """How an orchestrator that starts now ends. There is no trainer, so it ends in some way."""
    model = tiny_model().config.model_dump(exclude_defaults=True)
    config = OrchestratorConfig(
        output_dir=run_directory,
        attempt=1,
        model={"type": "transformers", **model},
        environment={"type": "reverse_text", "text": str(WORDS)},
        prompts_per_step=4,
        samples_per_prompt=2,
        async_level=1,
        evaluation=None,
        client={"base_url": server.base_url, "timeout": 300},
        policy_timeout=0.1,
    )
    with pytest.raises(UserError) as caught:
        orchestrate(config)
    return caught.value


def rollouts(run_directory: Path) -> list[str]:
    return sorted(path.name for path in (run_directory / "rollouts").iterdir())


def test_an_honest_server_s_rollouts_are_used(run_directory: Path, server: Server) -> None:
    # Steps 1 and 2 are by policy 0, step 3 by policy 1, which means that 1 is used up.
    assert isinstance(refusal(run_directory, server), WaitTimeout)
    assert rollouts(run_directory) == ["step_2", "step_3"]


@pytest.mark.parametrize(
    ("lie", "said"),
    [
        ("old weights", "differ from the trainer's by more than 1e-04 nats"),
        ("half of the weights", "differ from the trainer's by more than 1e-04 nats"),
        ("half, with an honest digest", "the digest of its weights is xxh3-128 of float32:"),
        ("a load that raises", "half-way"),
    ],
)
def test_a_server_that_did_not_load_the_policy_is_caught(
    run_directory: Path, server: Server, lie: str, said: str
) -> None:
    server.lie(lie)
    error = refusal(run_directory, server)
    assert isinstance(error, WrongPolicy)
    assert "does not serve the policy of step 0, asked 2 times" in str(error)
    assert said in str(error)
    assert rollouts(run_directory) == []


def test_weights_that_another_job_sends_after_the_check_are_caught(
    run_directory: Path, server: Server
) -> None:
    server.lie("another job")
    error = refusal(run_directory, server)
    assert isinstance(error, WrongPolicy)
    assert "other weights than those that were checked; is another job using it?" in str(error)
    assert rollouts(run_directory) == []
