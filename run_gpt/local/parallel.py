"""Processes of a tensor-parallel model: start of the followers, loading of a share into each, and their end.

The followers run `follower.py`. They live as long as their stdin, which this process holds. So they end with this
process, even if it crashes.
"""

import os
import pickle
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from run_gpt.engine.runners.generic import GenericRunner
from run_gpt.engine.runners.parallel import ParallelRunner
from run_gpt.errors import SetupError
from run_gpt.models import LoadedModel, OnProgress
from run_gpt.models.loading import PackerFor, load_weights
from run_gpt.models.placement import Placement

TIMEOUT = timedelta(minutes=30)
"""Time limit, for a share that takes long to load. A process that ends is noticed at once."""


@dataclass(frozen=True)
class Join:
    """First message to a follower."""

    placement: Placement
    rank: int
    port: int
    threads: int


class Followers:
    """Other processes of a model. Raises SetupError if one does not start."""

    def __init__(self, placement: Placement):
        if dist.is_initialized():
            raise SetupError("tensor_parallel: one such model in a process, and there is one: close it, or use another")
        self.size = placement.config.tensor_parallel
        self._closed = False
        self._threads = torch.get_num_threads()
        share = max(1, self._threads // self.size)
        self._store = _store_on_loopback(self.size)
        env = {**os.environ, "OMP_NUM_THREADS": str(share)}
        self._processes = [
            subprocess.Popen(
                [sys.executable, "-m", "run_gpt.local.follower"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env={**env, "LOCAL_RANK": str(rank)},
            )
            for rank in range(1, self.size)
        ]
        try:
            for rank in range(1, self.size):
                self._send(rank, pickle.dumps(Join(placement, rank, self._store.port, share)))
            self._heard(b"here")
            torch.set_num_threads(share)
            self.group = join_group(self._store, 0, self.size)
        except BaseException:
            self.close()
            raise

    def send(self, data: bytes) -> None:
        """Send a call to each follower. Raises BrokenPipeError if one has ended."""
        for rank in range(1, self.size):
            self._send(rank, data)

    def leading(self, runner: GenericRunner, device: str) -> ParallelRunner:
        """Return the runner of this process, once all followers have loaded. Raises SetupError if one cannot."""
        self._heard(b"loaded")
        shares = 1 if device == "cpu" else self.size  # on a CPU all shares are in the same memory
        return ParallelRunner(runner, self.send, self.group, runner.cache_bytes_per_token // shares, self.kill)

    def watch(self, on_end: Callable[[str], None]) -> None:
        """Call `on_end` with a message whenever a follower ends by itself from now on."""
        for rank, process in enumerate(self._processes, start=1):
            threading.Thread(target=self._watch, args=(rank, process, on_end), daemon=True).start()

    def kill(self) -> None:
        """Kill all followers at once; `watch` then calls its `on_end`."""
        for process in self._processes:
            process.kill()

    def close(self) -> None:
        """End all followers. Blocks for a few seconds at most."""
        self._closed = True
        for process in self._processes:
            with suppress(OSError):
                process.stdin.close()  # type: ignore[union-attr]
        for process in self._processes:
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            process.stdout.close()  # type: ignore[union-attr]
        if dist.is_initialized():
            dist.destroy_process_group()
        torch.set_num_threads(self._threads)

    def _send(self, rank: int, data: bytes) -> None:
        pipe = self._processes[rank - 1].stdin
        assert pipe is not None
        pipe.write(data)
        pipe.flush()

    def _heard(self, word: bytes) -> None:
        for rank, process in enumerate(self._processes, start=1):
            assert process.stdout is not None
            if (line := process.stdout.readline().strip()) != word:
                reason = line.decode(errors="replace") or f"it ended with code {process.wait()}"
                raise SetupError(f"tensor_parallel: process {rank} of {self.size} does not start: {reason}")

    def _watch(self, rank: int, process: "subprocess.Popen[bytes]", on_end: Callable[[str], None]) -> None:
        code = process.wait()
        if not self._closed:
            on_end(f"process {rank} of the model ended with code {code}")


def load_shares(
    placement: Placement, packer_for: PackerFor, on_progress: OnProgress
) -> tuple[LoadedModel, Followers | None]:
    """Load a model, and start its other processes before, if it is tensor-parallel. Its clean-ups end them.

    Raises SetupError.
    """
    if placement.config.tensor_parallel == 1:
        return load_weights(placement, packer_for=packer_for, on_progress=on_progress), None
    followers = Followers(placement)
    try:
        loaded = load_weights(placement, packer_for=packer_for, on_progress=on_progress)
    except BaseException:
        followers.close()
        raise
    return replace(loaded, clean_ups=(*loaded.clean_ups, followers.close)), followers


def _store_on_loopback(size: int) -> TCPStore:
    """Return the store of a group. By itself torch's would listen on every interface, and let anybody write to it."""
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    return TCPStore(
        *("127.0.0.1", port, size),
        is_master=True,
        wait_for_workers=False,
        timeout=TIMEOUT,
        master_listen_fd=listener.detach(),  # the store closes it
    )


def join_group(store: Any, rank: int, size: int) -> Any:
    """Join the group of processes, and return a group for communication between CPUs. Sockets are on loopback."""
    with suppress(OSError):
        names = [name for _, name in socket.if_nameindex() if name in ("lo", "lo0")]
        for variable in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME") if names else ():
            os.environ.setdefault(variable, names[0])
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    if backend == "nccl":
        torch.cuda.set_device(rank)
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=TIMEOUT)
    return dist.new_group(backend="gloo")
