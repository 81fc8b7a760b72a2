"""docs/inference.md: its examples run as written, and it names every metric and limit."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.support.commands import ROOT
from tests.support.inference_server import API_KEY, KEY, Server, running_server, wait_until_up

PAGE = (ROOT / "docs" / "inference.md").read_text()
EXAMPLES = re.findall(r"^```(bash|python)\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module", name="home")
def make_home(published: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory with a run that has published the policy of step 20."""
    directory = tmp_path_factory.mktemp("home")
    shutil.copytree(published / "step_1", directory / "outputs/rl_reverse/weights/step_20")
    return directory


@pytest.fixture(scope="module", name="documented")
def start_documented(home: Path) -> Iterator[Server]:
    with running_server(home / "outputs") as server:
        wait_until_up(server)
        yield server


@pytest.mark.parametrize(("language", "example"), EXAMPLES)
def test_every_example_of_the_page_runs(
    language: str, example: str, documented: Server, home: Path
) -> None:
    if language == "bash" and shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    program = ["bash", "-euo", "pipefail"] if language == "bash" else [sys.executable]
    code = example.replace("http://127.0.0.1:8000", documented.base_url)
    code = code.replace("curl ", "curl --fail-with-body -sS ")
    environment = os.environ | {"NO_PROXY": "127.0.0.1", API_KEY: KEY}
    done = subprocess.run(
        [*program, "-c", code], cwd=home, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout
    if "/weights" in example:
        assert done.stdout.count('"version":20') == 2
    if "stream_options" in example:
        assert done.stdout.endswith("data: [DONE]\n\n")


def test_the_page_names_every_metric(documented: Server) -> None:
    shown = httpx.get(f"{documented.base_url}/metrics", trust_env=False).text
    names = {line.split()[2] for line in shown.splitlines() if line.startswith("# TYPE")}
    names = {name for name in names if not name.endswith("_created")}
    assert names == set(re.findall(r"`(torchrl_ckpt_\w+)", PAGE))


def test_the_page_names_every_limit() -> None:
    for option in ("max_body_bytes", "max_length", "max_sequences", "max_running", "max_queued"):
        assert f"`{option}`" in PAGE
