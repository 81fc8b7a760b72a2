"""Jobs whose rollouts vLLM generates, from the set-up of its environment to the last process."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from tests.support.commands import RECIPES, ROOT, free_port, metrics, run, running, succeed
from tests.support.vllm_server import RandomPolicies, vllm_server
from torchrl_ckpt.orchestrator.attestation import attest
from torchrl_ckpt.plugin_api.errors import WrongPolicy

pytestmark = pytest.mark.slow

FLOAT32_MEAN = 1e-5
FLOAT32_MAX = 5e-5

# What the plugin's worker would do without the fix for tied embeddings.
PLAIN_RELOAD = """\
import torchrl_ckpt_vllm.worker as worker

def plain_reload(self, directory):
    self.reload_weights(weights_path=directory)

worker.ReloadingWorker.reload_published = plain_reload
"""


@pytest.fixture(scope="module", name="workplace")
def make_workplace(vllm_python: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory with the model that both engines start from."""
    directory = tmp_path_factory.mktemp("vllm_jobs")
    succeed("sft", "@", RECIPES / "sft_reverse.toml", cwd=directory)
    return directory


def held_out_rewards(run_directory: Path) -> list[float]:
    """Return the held-out reward of each evaluation."""
    rows = map(json.loads, (run_directory / "metrics.jsonl").read_text().splitlines())
    return [row["reward/mean"] for row in rows if row["component"] == "evaluation"]


def assert_engine_and_trainer_agree(run_directory: Path) -> None:
    rows = metrics(run_directory)
    assert rows["trainer", 1]["logprob_difference"] < FLOAT32_MEAN
    for step in range(1, 21):
        assert rows["orchestrator", step]["canary/max_difference"] < FLOAT32_MAX


def test_the_reward_rises_as_with_the_embedded_engine(workplace: Path) -> None:
    succeed(ROOT / "run_train.sh", RECIPES / "rl_reverse_vllm.toml", cwd=workplace)
    run_directory = workplace / "outputs/rl_reverse_vllm"
    before, after = held_out_rewards(run_directory)
    assert after - before >= 0.03
    assert_engine_and_trainer_agree(run_directory)


def test_a_vllm_server_stays_up_over_a_split_run(workplace: Path) -> None:
    # A port of its own: tests/jobs takes the recipes' default, and may run at the same time.
    port = free_port()
    rl = (
        *("rl", "--trainer", "@", RECIPES / "reverse/train.toml"),
        *("--orchestrator", "@", RECIPES / "reverse/orch.toml"),
        *("--orchestrator.client.base-url", f"http://127.0.0.1:{port}"),
    )
    serve = ("inference", "@", RECIPES / "reverse/infer.toml", "--engine.type", "vllm")
    with running(*serve, "--port", port, cwd=workplace) as server:
        succeed(*rl, "--max-steps", 10, "--ckpt", cwd=workplace)
        succeed(*rl, "--max-steps", 20, "--ckpt.resume-step", 10, cwd=workplace)
        assert server.poll() is None
    run_directory = workplace / "outputs/rl"
    rewards = held_out_rewards(run_directory)
    assert rewards[-1] - rewards[0] >= 0.03
    assert_engine_and_trainer_agree(run_directory)


async def test_attestation_fails_without_the_fix_for_tied_embeddings(
    vllm_python: Path, tied: RandomPolicies, tmp_path: Path
) -> None:
    (tmp_path / "sitecustomize.py").write_text(PLAIN_RELOAD)

    tied_model = ("--model.config.tie-word-embeddings", "true")
    allowed = ("--allowed-dirs", f'["{tied.root}"]')
    env = {"PYTHONPATH": str(tmp_path)}
    with vllm_server(tmp_path, *tied_model, *allowed, env=env) as server:
        async with server.client() as client:
            with pytest.raises(WrongPolicy, match="differ from the trainer's"):
                await attest(client, tied.policy(1), tied.directory(1), tolerance=None)


@contextmanager
def children_of(process: Any) -> Iterator[list[psutil.Process]]:
    """Yield the descendants of `process`, and kill those that are left at the end."""
    children = psutil.Process(process.pid).children(recursive=True)
    try:
        yield children
    finally:
        for child in children:
            if child.is_running():
                child.kill()


def test_a_killed_server_leaves_no_vllm_process(vllm_python: Path, tmp_path: Path) -> None:
    with vllm_server(tmp_path) as server, children_of(server.process) as children:
        assert any("VLLM" in child.name() for child in children)
        os.kill(server.process.pid, signal.SIGKILL)
        _, alive = psutil.wait_procs(children, timeout=20)
        assert not alive


def test_a_server_exits_with_vllms_engine_during_requests(
    vllm_python: Path, tmp_path: Path
) -> None:
    with (
        vllm_server(tmp_path) as server,
        children_of(server.process) as children,
        httpx.Client(base_url=server.base_url, trust_env=False, timeout=60) as http,
        ThreadPoolExecutor() as threads,
    ):
        body = {"prompt": [[5, 6, 7, 3]] * 64, "n": 64, "max_tokens": 100}
        request = threads.submit(http.post, "/v1/completions", json=body)
        time.sleep(0.5)
        [core] = [child for child in children if "EngineCor" in child.name()]
        core.kill()
        assert server.process.wait(timeout=20) == 1
        _, alive = psutil.wait_procs(children, timeout=20)
        assert not alive
        with suppress(httpx.TransportError):
            assert request.result().status_code == 500
    log = server.log.read_text()
    assert "the engine has died, so the server exits" in log
    assert "\nerror: " not in log  # a launcher would take it for the user's mistake


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--engine.max-num-batched-token", "did you mean `max_num_batched_tokens`?"),
        ("--engine.max-num-batched-tokens", "vLLM does not accept this model or these options"),
    ],
)
def test_vllms_own_options_are_checked(
    vllm_python: Path, tmp_path: Path, flag: str, message: str
) -> None:
    serve = ("inference", "@", RECIPES / "reverse/infer.toml", "--engine.type", "vllm")
    finished = run(*serve, "--port", 0, flag, -5, cwd=tmp_path)
    assert finished.code == 2
    assert message in finished.err
