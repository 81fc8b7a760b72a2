"""The order of a data set is shuffled, complete, and resumable at any position."""

from __future__ import annotations

import pytest

from torchrl_ckpt.plugin_api.errors import CheckpointMismatch
from torchrl_ckpt.shuffled_stream import ShuffledStream


def test_each_epoch_has_every_item_once_in_another_order() -> None:
    stream = ShuffledStream(50, seed=1)
    first, second = stream.take(50), stream.take(50)
    assert sorted(first) == sorted(second) == list(range(50))
    assert first != second
    assert list(range(50)) not in (first, second)


@pytest.mark.parametrize("size", [10, None])
@pytest.mark.parametrize("position", [0, 3, 10, 11, 25])
def test_a_resumed_stream_goes_on_where_the_saved_one_was(size: int | None, position: int) -> None:
    whole = ShuffledStream(size, seed=2).take(40)
    stopped = ShuffledStream(size, seed=2)
    stopped.take(position)
    resumed = ShuffledStream(size, seed=2)
    resumed.load_state_dict(stopped.state_dict())
    assert resumed.take(40 - position) == whole[position:]


def test_the_order_is_the_same_on_every_machine_and_version() -> None:
    assert ShuffledStream(8, seed=0).take(8) == [0, 2, 1, 5, 4, 3, 6, 7]


def test_without_a_size_the_indices_count_up() -> None:
    assert ShuffledStream(None, seed=0).take(4) == [0, 1, 2, 3]


def test_a_data_set_of_another_size_is_refused() -> None:
    with pytest.raises(CheckpointMismatch, match=r"made with 10 samples.*now there are 11"):
        ShuffledStream(11, seed=0).load_state_dict(ShuffledStream(10, seed=0).state_dict())
