"""Follower: a further process of a tensor-parallel model, which loads its share and makes the first process's calls.

It imports torch only when it is deaf to signals and its stdout is free of other output.
"""

import os
import pickle
import signal
import threading
from typing import TYPE_CHECKING, Any

from run_gpt.errors import RunGPTError
from run_gpt.process import logs

if TYPE_CHECKING:
    from run_gpt.local.parallel import Join


def main() -> None:
    """Run a follower: join, load, follow. Its stdin is a pipe from the process that started it."""
    # Ctrl-C, and the SIGTERM that a service manager sends to every process, are handled by the first process: it lets
    # running requests finish, and then ends this one.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    words = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # output that libraries print must not be read as an answer
    logs.begin("follower")
    calls = _calls_until_closed()
    join: Join = pickle.load(calls)
    import torch
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    from run_gpt.engine.runners.generic import GenericRunner
    from run_gpt.engine.runners.parallel import follow
    from run_gpt.local.parallel import TIMEOUT, join_group
    from run_gpt.models.loading import load_weights

    torch.set_num_threads(join.threads)
    words.write(b"here\n")
    words.flush()
    try:
        size = join.placement.config.tensor_parallel
        store = TCPStore("127.0.0.1", join.port, size, is_master=False, timeout=TIMEOUT)
        group = join_group(store, join.rank, size)
        runner = GenericRunner(load_weights(join.placement).model)
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
