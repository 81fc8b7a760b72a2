"""A step is committed if and only if every part of it is whole."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.support.plain_checkpoint import PARTS, Save, write_part
from torchrl_ckpt.checkpoint.commit import commit, recover, request, wait_for_parts
from torchrl_ckpt.checkpoint.layout import Layout
from torchrl_ckpt.checkpoint.manifest import read_manifest
from torchrl_ckpt.checkpoint.part import requests_for
from torchrl_ckpt.checkpoint.retention import Retention, prune
from torchrl_ckpt.checkpoint.verify import verify
from torchrl_ckpt.plugin_api.errors import CheckpointDamaged, WaitTimeout


def test_no_step_is_listed_before_the_commit(layout: Layout, save: Save) -> None:
    save(3)
    partial = request(layout, 4, PARTS)
    for component in PARTS:
        write_part(partial, component)
    assert layout.steps() == [3]


def test_a_missing_part_is_waited_for_and_then_named(layout: Layout) -> None:
    partial = request(layout, 1, PARTS)
    write_part(partial, "trainer")
    with pytest.raises(WaitTimeout, match=r"orchestrator's part of \.step_1\.partial"):
        wait_for_parts(partial, PARTS, timeout=0.05)
    assert layout.steps() == []


def test_a_file_that_is_shorter_than_was_written_stops_the_commit(layout: Layout) -> None:
    partial = request(layout, 1, PARTS)
    for component in PARTS:
        write_part(partial, component)
    records = wait_for_parts(partial, PARTS, timeout=1)
    (partial / "trainer/tensors/shard.bin").write_bytes(b"wei")
    with pytest.raises(CheckpointDamaged, match=r"shard\.bin has 3 bytes, but 7"):
        commit(layout, 1, PARTS, records, {})
    assert layout.steps() == []


def test_only_the_components_that_owe_a_part_see_a_request(layout: Layout) -> None:
    partial = request(layout, 7, PARTS)
    assert [step for step, _ in requests_for(layout, "orchestrator")] == [7]
    write_part(partial, "orchestrator")
    assert list(requests_for(layout, "orchestrator")) == []
    assert list(requests_for(layout, "inference")) == []


def test_a_new_request_deletes_the_parts_of_an_attempt_that_died(layout: Layout) -> None:
    write_part(request(layout, 2, PARTS), "orchestrator", b"stale")
    partial = request(layout, 2, PARTS)
    assert not (partial / "orchestrator").exists()


def test_saving_a_step_again_replaces_it_whole(layout: Layout, save: Save) -> None:
    first = read_manifest(save(5))
    second = read_manifest(save(5))
    assert second.metadata["created"] > first.metadata["created"]
    assert layout.steps() == [5]
    prune(layout, Retention())
    assert layout.leftovers() == []


def test_a_failed_rename_puts_the_old_step_back(
    layout: Layout, save: Save, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(5)
    rename = os.rename

    def fail(source: Path, target: Path) -> None:
        if source == layout.partial(5):
            raise OSError(5, "Input/output error")
        rename(source, target)

    monkeypatch.setattr(os, "rename", fail)
    with pytest.raises(OSError, match="Input/output"):
        save(5)
    verify(layout.step(5))


def test_a_kill_while_a_step_is_replaced_loses_neither(layout: Layout, save: Save) -> None:
    os.rename(save(5), layout.replaced(5))
    assert layout.steps() == []
    recover(layout)
    assert layout.steps() == [5]
    verify(layout.step(5))


def test_recovery_removes_what_was_never_committed(layout: Layout, save: Save) -> None:
    save(1)
    request(layout, 2, PARTS)
    layout.deleting(3).mkdir()
    recover(layout)
    assert layout.leftovers() == []
    assert layout.steps() == [1]


def test_the_manifest_lists_every_file_with_size_and_digest(save: Save) -> None:
    directory = save(1)
    in_manifest = {
        file["path"] for file in json.loads((directory / "manifest.json").read_text())["files"]
    }
    found = {p.relative_to(directory).as_posix() for p in directory.rglob("*") if p.is_file()}
    assert in_manifest == found - {"manifest.json"}
