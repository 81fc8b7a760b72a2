"""Packing loses no token, mixes no documents and counts what is learned."""

from __future__ import annotations

import pytest
import torch

from torchrl_ckpt.plugin_api.errors import DataError
from torchrl_ckpt.trainer.packing import TrainSample, micro_batch, pack


def sample(*token_ids: int, prompt: int = 1, **more: object) -> TrainSample:
    learned = [False] * prompt + [True] * (len(token_ids) - prompt)
    return TrainSample(token_ids, learned, **more)  # type: ignore[arg-type]


def test_every_sample_is_in_one_row_in_order_of_arrival() -> None:
    samples = [sample(*range(1, 1 + size)) for size in (4, 3, 2, 4, 1)]
    rows = pack(samples, length=6)
    assert [[len(s.token_ids) for s in row] for row in rows] == [[4, 2], [3, 1], [4]]


def test_a_sample_that_does_not_fit_names_the_option() -> None:
    with pytest.raises(DataError, match=r"5 tokens, but `packing\.length` is 4"):
        pack([sample(1, 2, 3, 4, 5)], length=4)


def test_positions_restart_with_each_document_and_padding_is_one_of_its_own() -> None:
    batch = micro_batch([[sample(5, 6, 7), sample(8, 9)]], length=8)
    assert batch.input_ids.tolist() == [[5, 6, 7, 8, 9, 0, 0, 0]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 0, 1, 0, 1, 2]]
    assert batch.documents.tolist() == [[0, 0, 0, 1, 1, -1, -1, -1]]
    assert batch.learned.tolist() == [[False, True, True, False, True, False, False, False]]


def test_advantages_and_old_logprobs_stand_at_their_tokens() -> None:
    row = [sample(5, 6, advantage=2.0, old_logprobs=[0.0, -1.5]), sample(7, 8, advantage=-1.0)]
    batch = micro_batch([row], length=5)
    assert batch.advantages.tolist() == [[2.0, 2.0, -1.0, -1.0, 0.0]]
    assert batch.old_logprobs.tolist() == [[0.0, -1.5, 0.0, 0.0, 0.0]]


def test_a_first_token_is_never_learned_since_nothing_predicts_it() -> None:
    alone = TrainSample([1, 2], [True, True])
    assert alone.num_learned == 1
    assert micro_batch([[alone]], length=2).learned.tolist() == [[False, True]]


def test_no_rows_make_a_row_that_counts_for_nothing() -> None:
    batch = micro_batch([], length=4)
    assert batch.input_ids.shape == (1, 4)
    assert not torch.any(batch.learned)
