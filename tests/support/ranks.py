"""Runs a function on several ranks, each a process of its own."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch.distributed as dist
import torch.multiprocessing


def run_ranks(num_ranks: int, function: Callable[..., None], directory: Path, *more: Any) -> None:
    """Call `function(rank, directory, *more)` on every rank of a gloo group.

    Raises what the first rank that fails has raised. `directory` must be empty or without a file
    called `rendezvous`, where the ranks meet.
    """
    arguments = (num_ranks, function, directory, *more)
    torch.multiprocessing.spawn(_run_rank, args=arguments, nprocs=num_ranks)


def _run_rank(
    rank: int, num_ranks: int, function: Callable[..., None], directory: Path, *more: Any
) -> None:
    rendezvous = f"file://{directory}/rendezvous"
    dist.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=num_ranks)
    function(rank, directory, *more)
    dist.barrier()
    dist.destroy_process_group()
    # In a process that has made a DTensor, torch 2.13 keeps gloo's threads running even after
    # `destroy_process_group`. The C++ destructors at exit then race with them, and once in a while
    # abort the process ("terminate called without an active exception"). This skips them.
    os._exit(0)
