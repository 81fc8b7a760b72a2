"""The longest common subsequence of two strings."""

from __future__ import annotations


def longest_common_subsequence(left: str, right: str) -> int:
    """Return its length, by dynamic programming in O(len(left) * len(right))."""
    previous = [0] * (len(right) + 1)
    for a in left:
        current = [0]
        for column, b in enumerate(right):
            longest = previous[column] + 1 if a == b else max(previous[column + 1], current[column])
            current.append(longest)
        previous = current
    return previous[-1]
