"""`POST /weights` and `GET /weights`: which policy is served, for those who have the key."""

from __future__ import annotations

import hmac
import json
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, Header

from torchrl_ckpt.inference.http_errors import Forbidden, NotFound, WrongKey
from torchrl_ckpt.inference.metrics import ServerMetrics
from torchrl_ckpt.inference.served_policy import ServedPolicy
from torchrl_ckpt.plugin_api.errors import ModelError
from torchrl_ckpt.serving_api.protocol import LoadedWeights, LoadRequest


def requires_key(key: str) -> Callable[..., Awaitable[None]]:
    """A dependency that lets only requests with `Authorization: Bearer KEY` pass."""
    expected = f"Bearer {key}".encode()

    async def check(authorization: Annotated[str, Header()] = "") -> None:
        if not authorization:
            raise WrongKey("this needs the server's key, in `Authorization: Bearer KEY`")
        if not hmac.compare_digest(authorization.encode(), expected):
            raise WrongKey("this is not the server's key")

    return check


def weight_routes(
    policy: ServedPolicy, metrics: ServerMetrics, allowed_dirs: Sequence[Path]
) -> APIRouter:
    """The routes on `policy`; weights load from `allowed_dirs` and below."""
    router = APIRouter()

    @router.post("/weights")
    async def load(request: LoadRequest) -> LoadedWeights:
        directory = allowed_directory(request.directory, allowed_dirs)
        with metrics.loading():
            return await policy.load(directory, request.version)

    @router.get("/weights")
    async def loaded() -> LoadedWeights:
        return await policy.loaded()

    return router


def allowed_directory(directory: str, allowed_dirs: Sequence[Path]) -> Path:
    """`directory` without links.

    Raises `Forbidden` where it is written with `..`, or lies, itself or a file in it, elsewhere
    than below `allowed_dirs`, or names a shard elsewhere; `NotFound` where it is none; `ModelError`
    where its index of shards cannot be read.
    """
    roots = [root.resolve() for root in allowed_dirs]

    def lies_within(place: Path) -> bool:
        return any(place.resolve().is_relative_to(root) for root in roots)

    path = Path(directory)
    try:
        allowed = (
            path.is_absolute()
            and ".." not in path.parts
            and lies_within(path)
            and all(lies_within(entry) for entry in path.resolve().rglob("*"))
        )
        is_directory = path.is_dir()
    except (OSError, RuntimeError, ValueError):
        allowed = False  # too long, a loop of links, or no text: it lies nowhere
    if not allowed:
        raise Forbidden(
            "weights load only from absolute paths, without `..` and links that lead elsewhere, "
            f"below {', '.join(map(str, roots))} (`inference.allowed_dirs`)",
            "directory",
        )
    if not is_directory:
        raise NotFound(f"{path} is no directory", "directory")
    for index in path.resolve().glob("*.index.json"):
        _check_shards(index)
    return path.resolve()


def _check_shards(index: Path) -> None:
    """Raises `Forbidden` where an index of shards names anything but files beside it: whoever reads
    it would follow `../` out of the allowed directories."""
    try:
        shards = set(json.loads(index.read_text())["weight_map"].values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ModelError(f"{index} is no index of shards: {error!r}") from error
    for shard in shards:
        if not isinstance(shard, str) or shard != Path(shard).name or shard in ("", ".."):
            raise Forbidden(
                f"{index} names the shard {shard!r}; shards are files beside it, named without a "
                "path",
                "directory",
            )
