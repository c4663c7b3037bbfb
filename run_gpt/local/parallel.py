"""Processes of a tensor-parallel model: start of the followers, loading of a share into each, and their end.

The followers run `python -m run_gpt.local.parallel`. They live as long as their stdin, which this process holds. So
they end with this process, even if it crashes.
"""

import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from run_gpt.config import ModelConfig
from run_gpt.errors import RunGPTError, SetupError
from run_gpt.models import fetch
from run_gpt.process import logs

TIMEOUT = timedelta(minutes=30)
"""Time limit, for a share that takes long to load. A process that ends is noticed at once."""


@dataclass(frozen=True)
class _Join:
    """First message to a follower."""

    config: ModelConfig
    rank: int
    port: int
    threads: int


class Followers:
    """Other processes of a model. Raises SetupError if one does not start."""

    def __init__(self, config: ModelConfig):
        import torch
        import torch.distributed as dist
        from torch.distributed import TCPStore  # type: ignore[attr-defined]

        if dist.is_initialized():
            raise SetupError("tensor_parallel: one such model in a process, and there is one: close it, or use another")
        self.size = config.tensor_parallel
        self._closed = False
        self._threads = torch.get_num_threads()
        share = max(1, self._threads // self.size)
        self._store = TCPStore("127.0.0.1", 0, self.size, is_master=True, wait_for_workers=False, timeout=TIMEOUT)
        env = {**os.environ, "OMP_NUM_THREADS": str(share)}
        self._processes = [
            subprocess.Popen(
                [sys.executable, "-m", "run_gpt.local.parallel"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env={**env, "LOCAL_RANK": str(rank)},
            )
            for rank in range(1, self.size)
        ]
        try:
            for rank in range(1, self.size):
                self._send(rank, pickle.dumps(_Join(config, rank, self._store.port, share)))
            self._heard(b"here")
            torch.set_num_threads(share)
            self.group = _join(self._store, 0, self.size)
        except BaseException:
            self.close()
            raise

    def tell(self, data: bytes) -> None:
        """Send a call to each follower. Raises BrokenPipeError if one has ended."""
        for rank in range(1, self.size):
            self._send(rank, data)

    def wait_loaded(self) -> None:
        """Block until each follower has loaded its share. Raises SetupError if one cannot."""
        self._heard(b"loaded")

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
        import torch
        import torch.distributed as dist

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


def start_followers(config: ModelConfig) -> Followers | None:
    """Start the other processes of the model that `config` describes, and fetch it if necessary; None if it has none.

    Raises SetupError for a model that transformers cannot split, or not into that many parts.
    """
    if config.tensor_parallel == 1:
        return None
    _check(config)
    return Followers(config)


def _check(config: ModelConfig) -> None:
    import torch
    from transformers import AutoConfig

    from run_gpt.models.placement import choose_placement
    from run_gpt.models.preflight import settled

    size = config.tensor_parallel
    if size < 1:
        raise SetupError(f"tensor_parallel = {size}: it is the number of processes, at least 1")
    if config.device_map is not None or config.adapter_name_or_path is not None or config.adapters:
        raise SetupError("tensor_parallel splits each layer: leave device_map and adapters out")
    if config.precision in ("bit8", "bit4"):
        raise SetupError(f"tensor_parallel splits plain weights: use fp32, fp16 or bf16, not {config.precision}")
    gpus = torch.cuda.device_count()
    kind = config.device and config.device.partition(":")[0]
    if kind not in ((None, "cuda") if gpus else (None, "cpu")) or 0 < gpus < size:
        raise SetupError(f"tensor_parallel = {size}: it takes GPUs 0 to {size - 1}, or the CPU where there is no GPU")
    folder = fetch(config).folder
    if not gpus:  # all shares lie in the same memory
        settled(choose_placement(config), config, folder)
    shape = AutoConfig.from_pretrained(
        folder, trust_remote_code=config.trust_remote_code, local_files_only=True
    ).get_text_config()
    if not getattr(shape, "base_model_tp_plan", None):
        raise SetupError(
            f"tensor_parallel: transformers has no plan to split {shape.model_type}; it has one for llama, mistral, "
            "mixtral, qwen2, qwen3, gemma, gpt_neox, phi and others"
        )
    heads = [shape.num_attention_heads, getattr(shape, "num_key_value_heads", None) or shape.num_attention_heads]
    if any(count % size for count in heads):
        raise SetupError(
            f"tensor_parallel = {size}: this model has {heads[0]} attention heads and {heads[1]} of keys and values, "
            "and both must be multiples of it"
        )


def _join(store: Any, rank: int, size: int) -> Any:
    """Join the group of processes; returns a group for communication between CPUs. Sockets are on loopback."""
    import torch
    import torch.distributed as dist

    with suppress(OSError):
        import socket

        names = [name for _, name in socket.if_nameindex() if name in ("lo", "lo0")]
        os.environ.setdefault("GLOO_SOCKET_IFNAME", names[0] if names else "")
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    if backend == "nccl":
        torch.cuda.set_device(rank)
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=TIMEOUT)
    return dist.new_group(backend="gloo")


def main() -> None:
    """Run a follower: join, load, follow. Its stdin is a pipe from the process that started it."""
    import signal

    # Ctrl-C, and the SIGTERM that a service manager sends to every process, are handled by the first process: it lets
    # running requests finish, and then ends this one.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    logs.begin("follower")
    words = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # output that libraries print must not be read as an answer
    calls = _calls_until_closed()
    join: _Join = pickle.load(calls)
    import torch
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    from run_gpt.engine.runners.generic import GenericRunner
    from run_gpt.engine.runners.parallel import follow
    from run_gpt.models import load

    torch.set_num_threads(join.threads)
    words.write(b"here\n")
    words.flush()
    try:
        store = TCPStore("127.0.0.1", join.port, join.config.tensor_parallel, is_master=False, timeout=TIMEOUT)
        group = _join(store, join.rank, join.config.tensor_parallel)
        runner = GenericRunner(load(join.config).model)
    except RunGPTError as error:
        words.write(error.message.encode() + b"\n")
        words.flush()
        os._exit(1)
    words.write(b"loaded\n")
    words.flush()
    follow(runner, calls, group)


def _calls_until_closed() -> Any:
    """Return stdin, read through a thread that ends this process when it closes, even in the middle of a call."""
    read, write = os.pipe()

    def pump() -> None:
        while data := os.read(0, 1 << 16):
            while data:
                data = data[os.write(write, data) :]
        os._exit(0)

    threading.Thread(target=pump, daemon=True).start()
    return os.fdopen(read, "rb")


if __name__ == "__main__":
    main()
