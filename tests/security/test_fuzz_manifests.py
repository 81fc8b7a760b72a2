"""Manifests, parts and requests with anything in them: they are read, or refused in words, in
bounded time and memory. Whoever can write the files can also compute the digests in them."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.fuzzing import JSON_VALUES, mutated_bytes, mutated_json
from tests.support.growth import bounded
from tests.support.plain_checkpoint import PARTS, commit_plain, write_part
from torchrl_ckpt.checkpoint.commit import request
from torchrl_ckpt.checkpoint.inventory import list_entries
from torchrl_ckpt.checkpoint.layout import MANIFEST, PART, REQUEST, Layout
from torchrl_ckpt.checkpoint.manifest import read_manifest, write_manifest
from torchrl_ckpt.checkpoint.part import read_part, requests_for
from torchrl_ckpt.checkpoint.resume import choose
from torchrl_ckpt.checkpoint.verify import verify
from torchrl_ckpt.plugin_api.errors import CheckpointDamaged, UserError


def survives(read: Callable[[], object], *errors: type[Exception]) -> None:
    """Read, and accept no error but these."""
    with suppress(*errors):
        read()


@pytest.fixture(scope="module", name="layout")
def commit_two(tmp_path_factory: pytest.TempPathFactory) -> Layout:
    layout = Layout(tmp_path_factory.mktemp("fuzzed") / "checkpoints")
    layout.root.mkdir()
    for step in (1, 2):
        commit_plain(layout, step)
    return layout


@pytest.fixture(scope="module", name="manifest")
def read_good_manifest(layout: Layout) -> dict[str, Any]:
    content = json.loads((layout.step(2) / MANIFEST).read_bytes())
    del content["seal"], content["format"]
    return content


@bounded()
@given(data=st.data())
def test_a_sealed_manifest_of_odd_values_is_damage(
    layout: Layout, manifest: dict[str, Any], data: st.DataObject
) -> None:
    """`latest` steps back over it."""
    content = data.draw(mutated_json(manifest))
    try:
        write_manifest(layout.step(2), content)
    except (ValueError, TypeError, AttributeError, RecursionError):
        return  # No JSON.
    survives(lambda: verify(layout.step(2)), UserError)
    list(list_entries(layout))
    survives(lambda: choose(layout, "latest", quarantine=False), UserError)


@pytest.mark.parametrize(
    "content",
    [b"[" * 100_000, b'{"seal": ' + b"[" * 50_000, b"\xff\xfe", b'{"seal": NaN}'],
    ids=len,
)
def test_a_manifest_that_was_found_to_break_is_damage(layout: Layout, content: bytes) -> None:
    refuse_manifest(layout, content)


@bounded()
@given(data=st.data())
def test_a_manifest_of_any_bytes_is_damage(layout: Layout, data: st.DataObject) -> None:
    whole = (layout.step(1) / MANIFEST).read_bytes()
    content = data.draw(st.one_of(mutated_bytes(whole), JSON_VALUES.map(_dumped)))
    if content != whole:
        refuse_manifest(layout, content)


def refuse_manifest(layout: Layout, content: bytes) -> None:
    path = layout.step(1) / MANIFEST
    whole = path.read_bytes()
    path.write_bytes(content)
    try:
        with pytest.raises(CheckpointDamaged):
            read_manifest(layout.step(1))
        list(list_entries(layout))
    finally:
        path.write_bytes(whole)


@bounded()
@given(data=st.data())
def test_a_part_or_request_of_odd_values_fails_the_save_in_words(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    layout = Layout(tmp_path_factory.mktemp("parts") / "checkpoints")
    layout.root.mkdir()
    partial = request(layout, 3, PARTS)
    write_part(partial, "trainer")
    name = data.draw(st.sampled_from([REQUEST, f"trainer/{PART}"]))
    path = partial / name
    path.write_bytes(
        data.draw(
            st.one_of(
                mutated_bytes(path.read_bytes()),
                mutated_json(json.loads(path.read_bytes())).map(_dumped),
            )
        )
    )
    survives(lambda: read_part(partial, "trainer"), UserError)
    survives(lambda: list(requests_for(layout, "orchestrator")), UserError)


def _dumped(value: Any) -> bytes:
    try:
        return json.dumps(value).encode()
    except RecursionError:
        return b"[" * 2000
