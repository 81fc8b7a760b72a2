"""`POST /weights` and `GET /weights`: which policy is served, for those who have the key."""

from __future__ import annotations

import hmac
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, Depends, Header

from torchrl_ckpt.exchange.completions import LoadedWeights, LoadRequest
from torchrl_ckpt.inference.failures import Forbidden, NotFound, WrongKey
from torchrl_ckpt.inference.serving import ServedPolicy


def requires_key(key: str) -> Callable[..., Awaitable[None]]:
    """A dependency that lets only requests with `Authorization: Bearer KEY` pass."""
    expected = f"Bearer {key}".encode()

    async def check(authorization: Annotated[str, Header()] = "") -> None:
        if not authorization:
            raise WrongKey("this needs the server's key, in `Authorization: Bearer KEY`")
        if not hmac.compare_digest(authorization.encode(), expected):
            raise WrongKey("this is not the server's key")

    return check


def weight_routes(policy: ServedPolicy, key: str, allowed_dirs: Sequence[Path]) -> APIRouter:
    """The routes on `policy`; weights load from `allowed_dirs` and below."""
    router = APIRouter(dependencies=[Depends(requires_key(key))])

    @router.post("/weights")
    async def load(request: LoadRequest) -> LoadedWeights:
        await policy.load(allowed_directory(request.directory, allowed_dirs), request.version)
        return await policy.loaded()

    @router.get("/weights")
    async def loaded() -> LoadedWeights:
        return await policy.loaded()

    return router


def allowed_directory(directory: str, allowed_dirs: Sequence[Path]) -> Path:
    """`directory` without links and `..`.

    Raises `Forbidden` where it, or a file in it, lies elsewhere than below `allowed_dirs`, and
    `NotFound` where it is none.
    """
    roots = [root.resolve() for root in allowed_dirs]

    def allowed(path: Path) -> bool:
        return any(path.resolve().is_relative_to(root) for root in roots)

    path = Path(directory)
    if "\0" in directory or not path.is_absolute() or not allowed(path):
        raise Forbidden(
            f"weights load only from absolute paths below {', '.join(map(str, roots))} "
            "(`inference.allowed_dirs`)",
            "directory",
        )
    resolved = path.resolve()
    if not resolved.is_dir():
        raise NotFound(f"{resolved} is no directory", "directory")
    for entry in resolved.rglob("*"):
        if not allowed(entry):
            raise Forbidden(f"{entry} is a link to a place that is not allowed", "directory")
    return resolved
