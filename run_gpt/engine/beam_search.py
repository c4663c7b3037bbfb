"""Beam searches of an engine: beside its batch, one request at a time, in a thread of their own."""

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from msgspec.structs import replace

from run_gpt.engine.request import Request, TokenEvent
from run_gpt.engine.text import TextStream
from run_gpt.engine.timing import Timing
from run_gpt.errors import InvalidRequest, QueueFull

Search = Callable[[threading.Event], list[list[int]]]
"""Return the answers' token ids, best first, early once the event is set (see ModelRunner.beam_search)."""
Ended = Callable[[Sequence[TokenEvent] | BaseException, float], None]
"""Take the events of a search, or its error, and the seconds since it was started; called in the searches' thread."""


class BeamSearches:
    """Queue of beam searches. Its owner holds one lock for `start` and `stop`."""

    def __init__(self, max_waiting: int, new_text: Callable[[Request], TextStream], end_ids: Sequence[int]):
        self._max_waiting = max_waiting
        self._new_text = new_text
        self._end_ids = end_ids
        self._last_seconds = 0.0
        """Time of the last search."""
        self._stops: dict[str, threading.Event] = {}
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="rungpt-beam")

    def __len__(self) -> int:
        """Return the number of searches that wait or run."""
        return len(self._stops)

    def start(self, request: Request, search: Search, ended: Ended) -> None:
        """Queue a search. Raises InvalidRequest for a request that has no beam search, and QueueFull."""
        if request.prompt_logprobs is not None or not request.max_new_tokens:
            raise InvalidRequest(
                f"num_beams = {request.num_beams}: beam search gives at least one token, and no scores of the prompt: "
                "leave it out",
                param="num_beams",
            )
        if len(self) > self._max_waiting:  # one of them runs
            seconds = QueueFull.seconds(self._last_seconds * (len(self) - self._max_waiting))
            raise QueueFull(
                f"{len(self) - 1} beam searches wait, the limit is {self._max_waiting}: try again in {seconds} s",
                retry_after=seconds,
            )
        self._stops[request.id] = stop = threading.Event()
        self._thread.submit(self._run, request, search, ended, stop, time.perf_counter())

    def stop(self, request_id: str) -> None:
        """Stop the search of a request that has ended, if it has one."""
        if (stop := self._stops.pop(request_id, None)) is not None:
            stop.set()

    def shutdown(self) -> None:
        """Wait until the thread has ended; every search was stopped before."""
        self._thread.shutdown()

    def _run(self, request: Request, search: Search, ended: Ended, stop: threading.Event, arrived: float) -> None:
        if stop.is_set():
            return
        started = time.perf_counter()
        result: list[TokenEvent] | BaseException
        try:
            answers = search(stop)
            timing = Timing(arrived, started, started, time.perf_counter())
            result = [
                replace(event := self._event(request, index, ids), timing=timing, token_ids=tuple(ids[: event.tokens]))
                for index, ids in enumerate(answers)
            ]
        except BaseException as error:  # a library's panic is no Exception
            result = error
        self._last_seconds = time.perf_counter() - started
        ended(result, time.perf_counter() - arrived)

    def _event(self, request: Request, index: int, token_ids: Sequence[int]) -> TokenEvent:
        text, shown = self._new_text(request), ""
        for count, token_id in enumerate(token_ids, start=1):
            if token_id in self._end_ids:
                return TokenEvent(index, shown + text.finish()[0], count, "stop")
            new, stopped = text.push(token_id)
            shown += new
            if stopped:
                return TokenEvent(index, shown, count, "stop", stop=text.stops.found)
        rest, stopped = text.finish()
        return TokenEvent(index, shown + rest, len(token_ids), "stop" if stopped else "length", stop=text.stops.found)
