"""One model over several processes: the leading runner, and the loop of the followers.

Each process holds a share of every layer (transformers' tensor parallelism), and all must make the same calls in the
same order. The first process sends each call to the others before it makes the call itself.
"""

import pickle
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import IO, Any

import torch
import torch.distributed as dist

from run_gpt.engine.plan import ScheduledTokens
from run_gpt.engine.request import Request
from run_gpt.engine.runner import ModelRunner
from run_gpt.engine.runners.generic import GenericRunner
from run_gpt.engine.runners.lora import Lora
from run_gpt.engine.slots import Copy


@dataclass(frozen=True)
class _Tokens:
    """Fields of a ScheduledTokens that a runner reads, without the sequence."""

    slot: int
    start: int
    token_ids: tuple[int, ...]
    num_logits: int
    prompt_length: int
    adapter: None = None

    @classmethod
    def of(cls, run: ScheduledTokens) -> "_Tokens":
        """Return a run without its sequence."""
        return cls(run.slot, run.start, run.token_ids, run.num_logits, run.prompt_length)

    @property
    def end(self) -> int:
        """Position after the last token."""
        return self.start + len(self.token_ids)


class _SharedStop(threading.Event):
    """Event of the first process, with the same value in all processes at the same point of their work."""

    def __init__(self, event: threading.Event | None, group: Any):
        super().__init__()
        self._event, self._group = event, group

    def is_set(self) -> bool:
        """Return the state of the first process's event. All processes must make this call."""
        flag = torch.tensor([self._event is not None and self._event.is_set()])
        dist.broadcast(flag, 0, group=self._group)
        return bool(flag)


class ParallelRunner(ModelRunner):
    """ModelRunner of the first process, over its GenericRunner; `send` sends bytes to every other process.

    There is one call at a time: a beam search blocks the batch until it ends. After a failed call there are no more:
    it is not known how far the other processes got, and their data would mix with that of the next call.
    """

    reuses_prefixes = True

    def __init__(
        self,
        runner: GenericRunner,
        send: Callable[[bytes], None],
        group: Any,
        cache_bytes_per_token: int,
        on_failure: Callable[[], None],
    ):
        """`on_failure` ends the other processes."""
        self._runner, self._send, self._group, self._on_failure = runner, send, group, on_failure
        self._failed = False
        self._lock = threading.Lock()
        self.cheap_tokens = runner.cheap_tokens
        self.end_ids = runner.end_ids
        self.cache_bytes_per_token = cache_bytes_per_token

    def forward(self, runs: Sequence[ScheduledTokens]) -> torch.Tensor:
        """See ModelRunner."""
        logits: torch.Tensor = self._call("forward", [_Tokens.of(run) for run in runs])
        return logits

    def embed(self, runs: Sequence[ScheduledTokens]) -> torch.Tensor:
        """See ModelRunner."""
        sums: torch.Tensor = self._call("embed", [_Tokens.of(run) for run in runs])
        return sums

    def add_adapter(self, lora: Lora) -> None:
        """See ModelRunner. Adapters are not supported."""
        raise ValueError("a model in shares has no adapters: leave --tensor-parallel out")

    def remove_adapter(self, lora: Lora) -> None:
        """See ModelRunner. Adapters are not supported."""

    def copy(self, copies: Sequence[Copy]) -> None:
        """See ModelRunner."""
        if copies:
            self._call("copy", list(copies))

    def release(self, slots: Sequence[int]) -> None:
        """See ModelRunner."""
        if slots:
            self._call("release", list(slots))

    def reset(self) -> None:
        """See ModelRunner."""
        if not self._failed:
            self._call("reset")

    def beam_search(self, request: Request, stopped: threading.Event, lora: Lora | None = None) -> list[list[int]]:
        """See ModelRunner."""
        answers: list[list[int]] = self._call("beam_search", request, own=(_SharedStop(stopped, self._group),))
        return answers

    def _call(self, name: str, *arguments: Any, own: tuple[Any, ...] = ()) -> Any:
        """Make a call in all processes. `own`: further arguments, for the runner of this process alone."""
        with self._lock:
            if self._failed:
                raise RuntimeError("a call of this model failed before, and its processes have ended")
            try:
                self._send(pickle.dumps((name, arguments)))
                return getattr(self._runner, name)(*arguments, *own)
            except BaseException:
                self._failed = True
                self._on_failure()
                raise


def follow(runner: GenericRunner, calls: IO[bytes], group: Any) -> None:
    """Make each call that the first process sends, until it closes `calls`."""
    while True:
        try:
            name, arguments = pickle.load(calls)
        except EOFError:
            return
        if name == "beam_search":
            runner.beam_search(arguments[0], _SharedStop(None, group))
        else:
            getattr(runner, name)(*arguments)
