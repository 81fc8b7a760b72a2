"""`POST /weights` and `GET /weights`: load and report the weights that are served."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from fastapi import APIRouter, Depends

from torchrl_ckpt.inference.bodies import parsed_body
from torchrl_ckpt.inference.http_errors import Forbidden, NotFound
from torchrl_ckpt.inference.metrics import ServerMetrics
from torchrl_ckpt.inference.served_policy import ServedPolicy
from torchrl_ckpt.inference.side_thread import SideThread
from torchrl_ckpt.plugin_api.errors import ModelError
from torchrl_ckpt.serving_api.protocol import LoadedWeights, LoadRequest

WEIGHTS = "/weights"


def weight_routes(
    policy: ServedPolicy,
    metrics: ServerMetrics,
    allowed_dirs: Sequence[Path],
    side_thread: SideThread,
) -> APIRouter:
    """Return the routes of `policy`, which loads weights from below `allowed_dirs` only."""
    router = APIRouter()
    parsed = Depends(parsed_body(LoadRequest, side_thread))

    @router.post(WEIGHTS)
    async def load(request: LoadRequest = parsed) -> LoadedWeights:
        directory = allowed_directory(request.directory, allowed_dirs)
        with metrics.loading():
            return await policy.load(directory, request.version)

    @router.get(WEIGHTS)
    async def loaded() -> LoadedWeights:
        return await policy.loaded()

    return router


def allowed_directory(directory: str, allowed_dirs: Sequence[Path]) -> Path:
    """Resolve `directory`.

    Raises `Forbidden` if it contains `..`, if it or a file in it resolves to a path outside
    `allowed_dirs`, or if an index names a shard outside it; `NotFound` if it is not a directory;
    `ModelError` if its index of shards cannot be read.
    """
    roots = [root.resolve() for root in allowed_dirs]

    def is_allowed(entry: Path) -> bool:
        return any(entry.resolve().is_relative_to(root) for root in roots)

    path = Path(directory)
    try:
        allowed = (
            path.is_absolute()
            and ".." not in path.parts
            and is_allowed(path)
            and all(is_allowed(entry) for entry in path.resolve().rglob("*"))
        )
        is_directory = path.is_dir()
    except (OSError, RuntimeError, ValueError):
        allowed = False  # the path is too long, a loop of links, or not text
    if not allowed:
        raise Forbidden(
            "weights load only from absolute paths, without `..` and without links that lead out, "
            f"below {', '.join(map(str, roots))} (`inference.allowed_dirs`)",
            "directory",
        )
    if not is_directory:
        raise NotFound(f"{path} is not a directory", "directory")
    for index in path.resolve().glob("*.index.json"):
        _check_shards(index)
    return path.resolve()


def _check_shards(index: Path) -> None:
    """Raise `Forbidden` if an index of shards names anything but files beside it: a reader of the
    index would follow `../` out of the allowed directories."""
    try:
        shards = set(json.loads(index.read_text())["weight_map"].values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ModelError(f"{index} is not an index of shards: {error!r}") from error
    for shard in shards:
        if not isinstance(shard, str) or shard != Path(shard).name or shard in ("", ".."):
            raise Forbidden(
                f"{index} names the shard {shard!r}; a shard must be a file beside the index, "
                "without a path",
                "directory",
            )
