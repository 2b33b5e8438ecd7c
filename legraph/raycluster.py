"""A Ray cluster: how to reach it, what it has room for, and what its errors say."""

from __future__ import annotations

import logging
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from legraph.errors import InputError, LegraphError, Problem, RunError
from legraph.marks import printable

LOCAL, AUTO = "local", "auto"
_CLIENT = "ray://"
_CONNECT_S = 3.0
# How HTTP/2 begins, which gRPC, and so Ray, speaks: the server's first frame is of the kind SETTINGS.
_SETTINGS, _TLS_ALERT = b"\x04", b"\x15"
_HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\x00\x00\x00" + _SETTINGS + bytes(5)
_GO_ON = "see Ray's logs; the same command goes on from there"


@dataclass(frozen=True, slots=True)
class Pool:
    """Where a batch runs.

    Attributes:
        address: "local" starts a cluster on this machine, "auto" finds the one that it belongs to, HOST:PORT
            or ray://HOST:PORT names one.
        actors: most engines. Default: one for each GPU; without GPUs, one for each machine.
        gpus_per_actor: default 1, or 0 if there are none.
        graphs_per_call: how many graphs an actor gets at a time. They share its cache.
    """

    address: str = LOCAL
    actors: int | None = None
    gpus_per_actor: float | None = None
    graphs_per_call: int = 32

    def __post_init__(self) -> None:
        problems = list[Problem]()
        if self.actors is not None and self.actors < 1:
            problems.append(Problem(f"{self.actors} actors cannot run anything", "at least 1"))
        if self.gpus_per_actor is not None and not self.gpus_per_actor >= 0:
            problems.append(Problem(f"an actor cannot have {self.gpus_per_actor} GPUs", "0 or more"))
        if self.graphs_per_call < 1:
            problems.append(Problem(f"a call cannot take {self.graphs_per_call} graphs", "at least 1"))
        if problems:
            raise InputError(problems)


@contextmanager
def connected(address: str) -> Iterator[None]:
    """A connection to a cluster. One that is there already is used, and stays.

    Raises:
        RunError: Ray is not installed.
        InputError: the cluster cannot be reached.
    """
    ray = ray_module()
    if ray.is_initialized():
        yield
        return
    _check_address(address)
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address == LOCAL:
        options["include_dashboard"] = False
    try:
        ray.init(address=address, **options)
    except Exception as error:  # of a dozen kinds, gRPC's among them
        raise _unreachable(address, str(error)) from None
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    try:
        yield
    finally:
        ray.shutdown()


def needs(pool: Pool) -> dict[str, float]:
    """What an actor takes of a machine.

    Raises:
        RunError: no machine has as much, so that Ray would wait for one for ever.
    """
    nodes = [node["Resources"] for node in ray_module().nodes() if node["Alive"]]
    most = max((node.get("GPU", 0) for node in nodes), default=0)
    gpus = (1 if most else 0) if pool.gpus_per_actor is None else pool.gpus_per_actor
    if gpus > most or not any(node.get("CPU", 0) >= 1 for node in nodes):
        raise RunError(
            f"no machine of the cluster has {gpus:g} GPUs and a CPU for an actor",
            f"the most GPUs that one has is {most:g}: use a smaller --gpus-per-actor",
        )
    return {"num_cpus": 1, "num_gpus": gpus}


def num_actors(pool: Pool) -> int:
    """Most actors at a time."""
    if pool.actors is not None:
        return pool.actors
    ray, gpus = ray_module(), needs(pool)["num_gpus"]
    if gpus:
        return max(1, int(ray.cluster_resources().get("GPU", 0) // gpus))
    return max(1, sum(node["Alive"] for node in ray.nodes()))


def ray_module() -> Any:
    """
    Raises:
        RunError: Ray is not installed.
    """
    try:
        import ray
        import ray.data
    except ImportError:
        raise RunError("Ray is not installed", "pip install 'legraph[ray]'") from None
    return ray


def _check_address(address: str) -> None:
    """Ray would try for minutes, and then end the process."""
    if address in (LOCAL, AUTO):
        return
    host, _, port = address.removeprefix(_CLIENT).rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 2**16:
        raise InputError(
            Problem(f"{printable(address)} is no address of a Ray cluster", f"{LOCAL}, {AUTO} or HOST:PORT")
        )
    try:
        with socket.create_connection((host.strip("[]"), int(port)), _CONNECT_S) as link:
            link.sendall(_HELLO)
            answer = link.recv(4)
    except OSError as error:
        raise _unreachable(address, error.strerror or str(error)) from None
    # One that hangs up may want TLS.
    if answer and answer[:1] != _TLS_ALERT and answer[3:4] != _SETTINGS:
        raise _unreachable(address, "what answers there is not Ray")


def _unreachable(address: str, why: str) -> InputError:
    reason = next((line.strip() for line in why.splitlines() if line.strip()), "no answer").rstrip(".")
    hint = f"see what 'ray status' says there; --ray {LOCAL} starts a cluster on this machine"
    what = f"the Ray cluster {printable(address)!r} cannot be reached: {reason}"
    return InputError(Problem(what, None, hint))


@contextmanager
def ray_errors() -> Iterator[None]:
    """What Ray raises, in a line."""
    from ray.exceptions import RayError

    try:
        yield
    except LegraphError:
        raise
    except RayError as error:
        first = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise RunError(f"Ray gave up: {first}", _GO_ON) from None
