"""While a job trains, nothing of it listens beyond loopback, and no store of it runs code."""

from __future__ import annotations

import base64
import os
import pickle
import signal
import socket
import struct
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from ipaddress import ip_address
from pathlib import Path

import psutil
import pytest
from torch.distributed import TCPStore

from tests.support.commands import RECIPES, start, wait_for_step
from tests.support.waiting import wait_until

_STORE_SECONDS = timedelta(seconds=5)
_AGENT_READS_SECONDS = 10.0

# The first bytes of a client of c10d's store: a magic number, and a number to send back.
_HELLO = struct.pack("<BI", 0, 0x3C85F7CE)
_NONCE = struct.pack("<I", 77)
_PING = struct.pack("<B", 13) + _NONCE


@pytest.fixture(scope="module", params=[1, 2], ids=["one rank", "two ranks"], name="job")
def training_job(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[psutil.Process]:
    """The launcher of a job that has trained a step and goes on training."""
    with training(tmp_path_factory.mktemp("job"), ranks=request.param) as launcher:
        yield launcher


@contextmanager
def training(directory: Path, *, ranks: int) -> Iterator[psutil.Process]:
    flags = ("--max-steps", 10_000, "--data.batch-size", 32, "--ranks", ranks, "--threads", 1)
    argv = ("sft", "@", RECIPES / "sft_reverse.toml", *flags, "--output-dir", directory / "run")
    process = start(argv, directory, public_sockets(), subprocess.DEVNULL)
    try:
        wait_for_step(directory / "run", 1)
        yield psutil.Process(process.pid)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=60)


def public_sockets() -> dict[str, str]:
    """Variables, as made for jobs of several machines, that put the ranks' sockets on a network."""
    for name, addresses in psutil.net_if_addrs().items():
        inet = [ip_address(each.address) for each in addresses if each.family is socket.AF_INET]
        if any(not address.is_loopback for address in inet):
            return {"GLOO_SOCKET_IFNAME": name, "NCCL_SOCKET_IFNAME": name}
    return {}


def listeners(launcher: psutil.Process) -> list[tuple[str, int]]:
    """Address and port of every TCP socket that a process of the job listens on."""
    return [
        (connection.laddr.ip, connection.laddr.port)
        for process in [launcher, *launcher.children(recursive=True)]
        for connection in process.net_connections(kind="tcp")
        if connection.status == psutil.CONN_LISTEN
    ]


def stores(launcher: psutil.Process) -> list[int]:
    """The ports of the job at which a c10d store answers."""
    return [port for _, port in listeners(launcher) if is_store(port)]


def is_store(port: int) -> bool:
    with suppress(OSError), socket.create_connection(("localhost", port), timeout=0.3) as client:
        client.sendall(_HELLO + _PING)
        return client.recv(len(_NONCE)) == _NONCE
    return False


class _Payload:
    """Creates a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self._marker = marker

    def __reduce__(self) -> tuple[object, ...]:
        return os.system, (f"touch {self._marker}",)


def poison(port: int, payload: str, launcher: psutil.Process) -> None:
    """Replace the state of the rendezvous in the store at `port` by `payload`."""
    store = TCPStore("localhost", port, is_master=False, timeout=_STORE_SECONDS)
    for process in launcher.children(recursive=True):
        key = f"torch.rendezvous.{process.environ().get('TORCHELASTIC_RUN_ID')}"
        if store.check([key]):
            store.set(key, payload)


def test_a_store_is_recognised() -> None:
    store = TCPStore("localhost", 0, is_master=True, timeout=_STORE_SECONDS)
    assert is_store(store.port)


def test_no_process_of_a_job_listens_beyond_loopback(job: psutil.Process) -> None:
    assert all(ip_address(host).is_loopback for host, _ in listeners(job)), listeners(job)


def test_no_process_of_a_job_serves_a_store(job: psutil.Process) -> None:
    assert stores(job) == []


def test_what_a_stranger_writes_into_a_store_is_not_executed(
    job: psutil.Process, tmp_path: Path
) -> None:
    marker = tmp_path / "executed"
    payload = base64.b64encode(pickle.dumps(_Payload(marker))).decode()
    ports = stores(job)
    for port in ports:
        poison(port, payload, job)
    if ports:
        with suppress(AssertionError):
            wait_until(marker.exists, _AGENT_READS_SECONDS)
    assert not marker.exists(), f"a stranger's code ran, out of one of the stores at {ports}"
