# The Ray cluster: started on this machine or joined, and how many workers of which size it has room for.
"""Connecting to Ray, quietly."""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from featx.engine import resources
from featx.errors import FeatxError, UsageError, first_line
from featx.requests import Job
from featx.text import count_of

# Seconds that a cluster may take to answer; Ray itself would wait for two minutes, and then end the process.
PATIENCE = 10.0

# More workers than a node has room for.
MANY = 1 << 30

# Bytes for what goes between processes, which is only names and outcomes; Ray would take a third of the memory.
OBJECT_STORE = 200_000_000


@dataclass(frozen=True, slots=True)
class Layout:
    """How workers are spread over a cluster.

    Attributes
    ----------
    workers : int
        How many there are at most.
    room : int
        For how many of them there is room now.
    cpus : int
        Processors of each.
    gpus : float
        GPUs of each.
    on_one_node : int
        How many there are on the node that has the most of them.
    """

    workers: int
    room: int
    cpus: int
    gpus: float
    on_one_node: int


@contextmanager
def connected(address: str | None) -> Iterator[None]:
    """Join the cluster at an address, or start one on this machine; a connection that is there already is kept.

    Raises
    ------
    FeatxError
        If Ray is not installed, or no cluster answers.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # a cluster that is started here reports to nobody
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise FeatxError("--engine ray needs Ray, which is not installed", "Run `pip install 'featx[ray]'`") from error
    if ray.is_initialized():
        with _silent():
            yield
        return
    _require_answer(address)
    started = {"num_cpus": resources.cores(), "object_store_memory": OBJECT_STORE, "include_dashboard": False}
    options = {} if address else started
    in_main = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGTERM) if in_main else None
    with _silent():
        try:
            ray.init(address or "local", log_to_driver=False, logging_level=logging.ERROR, **options)
        except (ConnectionError, RuntimeError, ValueError) as error:
            where = f"The Ray cluster at {address} cannot be joined" if address else "Ray cannot be started"
            raise FeatxError(f"{where}: {first_line(error)}", "Check it with `ray status`") from error
        if in_main and before is not None:  # which Ray has replaced
            signal.signal(signal.SIGTERM, before)
        try:
            yield
        finally:
            ray.shutdown()


@contextmanager
def _silent() -> Iterator[None]:
    """Keep Ray from printing its log, and what happens to workers; both are in Ray's files as well."""
    from ray._private import worker

    log = logging.getLogger("ray.data")
    level = log.level
    log.setLevel(logging.ERROR)
    # Ray has no other switch for what it prints to standard output of workers that were lost.
    vars(worker)["_worker_logs_enabled"] = False
    try:
        yield
    finally:
        log.setLevel(level)
        vars(worker)["_worker_logs_enabled"] = True


def _require_answer(address: str | None) -> None:
    """Refuse an address where nothing listens."""
    if address is None or address in ("auto", "local"):
        return
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal():
        raise UsageError(f"--ray-address: expected auto or host:port, not {address!r}")
    try:
        socket.create_connection((host.strip("[]"), int(port)), PATIENCE).close()
    except (OSError, OverflowError) as error:
        raise FeatxError(f"No Ray cluster answers at {address}: {error}", "Check it with `ray status`") from error


def nodes() -> list[dict[str, float]]:
    """Return the resources of each of the cluster's nodes."""
    import ray

    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def layout_of(nodes: Sequence[Mapping[str, Any]], job: Job, *, on_gpu: bool) -> Layout:
    """Choose the largest workers of which there is room for as many as wanted; by default one a node, or one a GPU.

    Parameters
    ----------
    nodes : sequence of mapping
        The resources of each: ``CPU``, and ``GPU`` where it has some.
    job : Job
        Its options say how many workers are wanted.
    on_gpu : bool
        Whether they compute on GPUs.

    Raises
    ------
    UsageError
        If there is no room for a single one.
    """
    if job.gpus_per_worker is not None and not on_gpu:
        raise UsageError("--gpus-per-worker is for GPUs, and this run computes on processors", "Leave it out")
    if not on_gpu and job.device == "auto" and any(node.get("GPU") for node in nodes):
        raise UsageError(
            "The Ray cluster has GPUs, and this machine, which plans the run, has none",
            "Start featx on a node with a GPU, or compute on processors with --device cpu",
        )
    gpus = (job.gpus_per_worker or 1.0) if on_gpu else 0.0

    def room(cpus: int) -> list[int]:
        """For how many workers there is room on each node."""
        by_gpus = [int(node.get("GPU", 0) // gpus) if gpus else MANY for node in nodes]
        return [min(int(node.get("CPU", 0) // cpus), most) for node, most in zip(nodes, by_gpus, strict=True)]

    by_default = sum(room(1)) if on_gpu else sum(node.get("CPU", 0) >= 1 for node in nodes)
    workers = job.ray_workers or by_default
    if not any(room(1)):
        size = f"{gpus:g} GPU and a processor" if on_gpu else "one processor"
        raise UsageError(f"The Ray cluster has no node with {size} for a worker", "`ray status` shows what it has")
    most = max(int(node.get("CPU", 0)) for node in nodes)
    at_once = min(workers, sum(room(1)))  # GPUs may be too few for all, however small they are
    cpus = next(cpus for cpus in range(most, 0, -1) if sum(room(cpus)) >= at_once)
    return Layout(workers, min(workers, sum(room(cpus))), cpus, gpus, min(workers, max(room(cpus))))


def shortage(layout: Layout) -> list[str]:
    """Say so where there is room for fewer workers than wanted."""
    if layout.room >= layout.workers:
        return []
    now = count_of(layout.room, "worker")
    share = "; --gpus-per-worker 0.5 lets two share a GPU" if layout.gpus == 1 else ""
    return [f"The Ray cluster has room for {now} now, not {layout.workers}; the others start when there is more{share}"]
