"""What all engines refuse: sequences that do not fit, weights of another model."""

from __future__ import annotations

from pathlib import Path

import pytest

from torchrl_ckpt.plugin_api.engine_checks import (
    check_same_model,
    check_sequences,
    hyper_parameters,
)
from torchrl_ckpt.plugin_api.errors import ModelError


@pytest.mark.parametrize(
    ("sequence", "message"),
    [([], "is empty"), ([1, 2, 3], "maximum length of 4"), ([5], r"in 0\.\.4"), ([-1], r"0\.\.4")],
)
def test_a_sequence_that_does_not_fit_is_refused_with_the_bound(
    sequence: list[int], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        check_sequences([[4], sequence], max_tokens=2, max_length=4, vocabulary=5)


def test_what_does_not_change_the_function_is_not_compared() -> None:
    config = {"hidden_size": 8, "torch_dtype": "float32", "dtype": "float32", "eos_token_id": 1}
    assert hyper_parameters(config) == {"hidden_size": 8}


def test_another_model_is_told_by_its_first_differences() -> None:
    served = {f"size_{i}": 1 for i in range(7)}
    check_same_model(Path("new"), served=served, offered=served)
    with pytest.raises(ModelError, match=r"at new are .* size_0 2, not 1, .* and 3 more"):
        check_same_model(
            Path("new"), served=served, offered={**dict.fromkeys(served, 2), "more": 1}
        )
