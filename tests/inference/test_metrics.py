"""`/metrics`, as a Prometheus server reads it."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

import httpx
from prometheus_client.parser import text_string_to_metric_families

from tests.support.inference_server import AUTHORIZED, running_server, wait_until_up


def read(http: httpx.Client) -> dict[tuple[str, ...], float]:
    """Return the value of each sample, by its name and the values of its labels."""
    answer = http.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    return {
        (
            sample.name.removeprefix("torchrl_ckpt_"),
            *(sample.labels[k] for k in sorted(sample.labels)),
        ): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }


def test_requests_tokens_and_loads_are_counted(published: Path, tmp_path: Path) -> None:
    allowed = tmp_path / "weights"
    shutil.copytree(published / "step_0", allowed / "step_0")
    (allowed / "empty").mkdir()
    with running_server(allowed) as server:
        wait_until_up(server)
        with httpx.Client(base_url=server.base_url, trust_env=False, timeout=60) as http:
            before = read(http)
            assert math.isnan(before["policy_version",])
            assert before["requests_in_flight",] == before["requests_queued",] == 0

            request = {"prompt": ["abc>", "d>"], "n": 3, "max_tokens": 5}
            used = http.post("/v1/completions", json=request).json()["usage"]
            streamed = http.post("/v1/completions", json=request | {"stream": True})
            assert streamed.text.endswith("[DONE]\n\n")
            http.post("/v1/completions", json={})
            http.get("/v1/models/some/unknown/name")
            http.get("/no/such/route")
            for name, version in (("step_0", 4), ("empty", 5), ("absent", 6)):
                body = {"directory": str(allowed / name), "version": version}
                http.post("/weights", json=body, headers=AUTHORIZED)
            after = read(http)
    assert after["requests_total", "/v1/completions", "200"] == 2
    assert after["requests_total", "/v1/completions", "400"] == 1
    assert after["requests_total", "/v1/models/{name:path}", "404"] == 1
    assert after["requests_total", "none", "404"] == 1
    assert after["request_seconds_count", "/v1/completions"] == 3
    assert after["prompt_tokens_total",] == 2 * used["prompt_tokens"] == 12
    assert after["completion_tokens_total",] > used["completion_tokens"]
    assert after["policy_version",] == 4
    assert after["weight_loads_total", "loaded"] == after["weight_loads_total", "refused"] == 1
    assert after["weight_loads_total", "failed"] == 0
