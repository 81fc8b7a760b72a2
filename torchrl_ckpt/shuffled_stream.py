"""An endless stream of a data set's indices, shuffled anew each epoch, and the position in it.

The order is a function of seed and epoch alone, and the position is one number, so that a
checkpoint holds it whatever the number of ranks.
"""

from __future__ import annotations

from typing import TypedDict

import numpy as np

from torchrl_ckpt.plugin_api.errors import CheckpointMismatch


class StreamPosition(TypedDict):
    """A stream's state: `position` indices of a data set of `size` were taken."""

    position: int
    size: int | None


class ShuffledStream:
    """Indices below `size`, without end. `size` None counts 0, 1, 2, ..."""

    def __init__(self, size: int | None, seed: int) -> None:
        if size is not None and size < 1:
            raise ValueError("a stream over no items")
        self._size = size
        self._seed = seed
        self._position = 0
        self._epoch = -1
        self._order = np.empty(0, dtype=np.int64)

    def take(self, count: int) -> list[int]:
        """Return the next `count` indices."""
        return [self._next() for _ in range(count)]

    def state_dict(self) -> StreamPosition:
        return {"position": self._position, "size": self._size}

    def load_state_dict(self, state: StreamPosition) -> None:
        """Go on from `state`. Raises `CheckpointMismatch` for a data set of another size."""
        if state["size"] != self._size:
            raise CheckpointMismatch(
                f"the checkpoint was made with {state['size']} samples in the data set, now there "
                f"are {self._size}: the order of the remaining samples cannot be kept. Resume with "
                "the same data, or start a new run from its weights"
            )
        self._position = state["position"]

    def _next(self) -> int:
        position = self._position
        self._position += 1
        if self._size is None:
            return position
        epoch, offset = divmod(position, self._size)
        if epoch != self._epoch:
            # Philox's raw bits are the same in every numpy; `permutation` is not promised to be.
            bits = np.random.Philox(key=[self._seed, epoch]).random_raw(self._size)
            self._order = np.argsort(bits, kind="stable")
            self._epoch = epoch
        return int(self._order[offset])
