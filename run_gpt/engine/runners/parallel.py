"""One model over several processes: the runner that leads, and the loop that follows it.

Each process holds a share of every layer (transformers' tensor parallelism) and must make the same calls of it in the
same order. The first one tells the others each call before it makes it itself.
"""

import pickle
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import IO, Any

import torch
import torch.distributed as dist

from run_gpt.engine.request import Request
from run_gpt.engine.runner import ModelRunner
from run_gpt.engine.runners.generic import GenericRunner
from run_gpt.engine.runners.lora import Lora
from run_gpt.engine.scheduler import Copy, Run


@dataclass(frozen=True)
class _Run:
    """What a runner reads of a Run, without the row and its consumer."""

    slot: int
    start: int
    token_ids: tuple[int, ...]
    wanted: int
    adapter: None = None

    @property
    def end(self) -> int:
        """The position after the last token."""
        return self.start + len(self.token_ids)


class _SharedStop(threading.Event):
    """The first process's event, as all processes see it: at the same point of their common work."""

    def __init__(self, event: threading.Event | None, group: Any):
        super().__init__()
        self._event, self._group = event, group

    def is_set(self) -> bool:
        """What the first process's event is; asked in all of them."""
        flag = torch.tensor([self._event is not None and self._event.is_set()])
        dist.broadcast(flag, 0, group=self._group)
        return bool(flag)


class ParallelRunner(ModelRunner):
    """A ModelRunner of the first process, over its GenericRunner; `tell` sends bytes to every other one.

    One call at a time: a beam search holds the batch up until it ends. A call that fails is the last one: nobody knows
    how far the others came in it, and what they go on with would mix with the next one's numbers.
    """

    reuses_prefixes = True

    def __init__(
        self,
        runner: GenericRunner,
        tell: Callable[[bytes], None],
        group: Any,
        cache_bytes_per_token: int,
        on_failure: Callable[[], None],
    ):
        """`on_failure` ends the other processes."""
        self._runner, self._tell, self._group, self._on_failure = runner, tell, group, on_failure
        self._failed = False
        self._lock = threading.Lock()
        self.cheap_tokens = runner.cheap_tokens
        self.end_ids = runner.end_ids
        self.cache_bytes_per_token = cache_bytes_per_token

    def forward(self, runs: Sequence[Run]) -> torch.Tensor:
        """See ModelRunner."""
        light = [_Run(run.slot, run.start, run.token_ids, run.wanted) for run in runs]
        logits: torch.Tensor = self._call("forward", light)
        return logits

    def embed(self, runs: Sequence[Run]) -> torch.Tensor:
        """See ModelRunner."""
        light = [_Run(run.slot, run.start, run.token_ids, run.wanted) for run in runs]
        sums: torch.Tensor = self._call("embed", light)
        return sums

    def add_adapter(self, lora: Lora) -> None:
        """See ModelRunner: there are none."""
        raise ValueError("a model in shares has no adapters: leave --tensor-parallel out")

    def remove_adapter(self, lora: Lora) -> None:
        """See ModelRunner: there are none."""

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
        """`own`: more arguments, for the runner of this process alone."""
        with self._lock:
            if self._failed:
                raise RuntimeError("a call of this model failed before, and its processes have ended")
            try:
                self._tell(pickle.dumps((name, arguments)))
                return getattr(self._runner, name)(*arguments, *own)
            except BaseException:
                self._failed = True
                self._on_failure()
                raise


def follow(runner: GenericRunner, calls: IO[bytes], group: Any) -> None:
    """Make each call that the first process tells of, until it closes `calls`."""
    while True:
        try:
            name, arguments = pickle.load(calls)
        except EOFError:
            return
        if name == "beam_search":
            runner.beam_search(arguments[0], _SharedStop(None, group))
        else:
            getattr(runner, name)(*arguments)
