"""A server that passes each canary and draws wrongly is caught before its tokens train anything."""

from __future__ import annotations

import re
from contextlib import closing
from pathlib import Path

import pytest

from tests.support.commands import RECIPES, Finished, metrics, run
from tests.support.inference_server import API_KEY, KEY
from tests.support.restartable_server import RestartableServer
from tests.support.serve_liar import BROKEN_DECODING
from torchrl_ckpt.plugin_api.errors import WrongPolicy
from torchrl_ckpt.serving_api.listener import open_listener


def job(server: RestartableServer, workplace: Path, output_dir: str) -> Finished:
    """Two steps, each trained by the very policy that drew its tokens."""
    return run(
        *("rl", "--trainer", "@", RECIPES / "reverse/train.toml", "--no-trainer.warm-start"),
        *("--orchestrator", "@", RECIPES / "reverse/orch.toml", "--no-orchestrator.evaluation"),
        *("--orchestrator.async-level", 0, "--orchestrator.prompts-per-step", 4),
        *("--orchestrator.client.base-url", server.base_url, "--max-steps", 2),
        *("--trainer.threads", 1, "--output-dir", output_dir),
        cwd=workplace,
        env={API_KEY: KEY},
    )


@pytest.mark.slow
def test_a_broken_decoding_ends_the_run_before_the_update(tmp_path: Path) -> None:
    with closing(open_listener("127.0.0.1", 0)) as listener:
        server = RestartableServer(tmp_path, listener, tmp_path / "lie")
        try:
            honest = job(server, tmp_path, "honest")
            server.lie(BROKEN_DECODING)
            deceived = job(server, tmp_path, "deceived")
        finally:
            server.kill()
    assert honest.code == 0, honest.err
    assert ("trainer", 2) in metrics(tmp_path / "honest")
    assert deceived.code == WrongPolicy.exit_code, deceived.err
    said = " ".join(deceived.err.split())
    assert "step 1" in said
    token = re.search(
        r"token \d+ of \d+ \(id \d+\) of .+?: the engine's log-probability is (-\d+\.\d+), "
        r"the trainer's (-\d+\.\d+)",
        said,
    )
    assert token is not None, said
    assert abs(float(token[1]) - float(token[2])) > 1e-3
    # The canary was right, the tokens were drawn and read, and no update was made.
    rows = metrics(tmp_path / "deceived")
    assert rows["orchestrator", 1]["canary/max_difference"] < 1e-4
    assert ("trainer", 1) not in rows
    assert [path.name for path in sorted((tmp_path / "deceived/weights").iterdir())] == ["step_0"]
