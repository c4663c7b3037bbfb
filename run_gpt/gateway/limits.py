"""Limits of keys on one gateway, requests at once and tokens a minute, and the use of each key."""

import asyncio
import math
import time
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from contextvars import ContextVar

from run_gpt.api.answers import Answer
from run_gpt.api.request import AnyRequest
from run_gpt.errors import DeadlineExceeded, RateLimited
from run_gpt.gateway.record import Record
from run_gpt.gateway.rights import EVERYTHING

MINUTE = 60.0
MOST_RETRY_SECONDS = 60
"""Greatest estimate of the time until one of a key's requests ends."""
BYTES_PER_TOKEN = 4
"""Rough size of a token in a request whose answer nobody waited for, so that its usage is not known."""


class Use:
    """Use of one request."""

    tokens = 0
    """Tokens of its prompt and answer, as far as they are known."""


class Account:
    """Requests and tokens of one key.

    A request is admitted while fewer than `requests` run, and while the tokens of earlier ones, less what has been made
    good since, are below `tokens`. These are made good evenly, all of `tokens` in a minute. So no request is too large:
    it counts when it has ended, and those after it wait.
    """

    def __init__(self) -> None:
        self.rights = EVERYTHING
        self.running = 0
        """Number of its requests that run."""
        self.tokens = 0
        """Tokens of all requests that have ended."""
        self.limited = {"requests": 0, "tokens": 0}
        """Number of its requests that were refused, by the limit."""
        self._owed, self._owed_at = 0.0, time.monotonic()
        self._seconds = 1.0
        """Mean time of its latest requests."""
        self._turns: deque[asyncio.Future[None]] = deque()

    def enter(self) -> None:
        """Count a request as running. Raises RateLimited, with the seconds to wait."""
        limits = self.rights.limits
        if self._full:
            self.limited["requests"] += 1
            seconds = min(MOST_RETRY_SECONDS, math.ceil(self._seconds / limits["requests"]))
            raise _refusal(f"requests={limits['requests']}: {self.running} of its requests run", seconds)
        if (wait := self._token_wait()) > 0:
            self.limited["tokens"] += 1
            raise _refusal(f"tokens={limits['tokens']} a minute, and has used them", math.ceil(wait))
        self.running += 1

    async def enter_in_turn(self, seconds: float) -> None:
        """Do the same for a further request of a call, which waits. Raises DeadlineExceeded after `seconds`."""
        try:
            async with asyncio.timeout(seconds):
                await self._turn()
                try:
                    while (wait := self._token_wait()) > 0:  # noqa: ASYNC110  (only time changes it)
                        await asyncio.sleep(wait)
                except BaseException:
                    self._free()
                    raise
        except TimeoutError:
            limits = " ".join(f"{name}={limit}" for name, limit in self.rights.limits.items())
            raise DeadlineExceeded(f"the limits of this key ({limits}) gave it no turn in {seconds:g} s") from None

    def leave(self, tokens: int, seconds: float) -> None:
        """Count a request as ended, after `seconds`, with its tokens."""
        self.tokens += tokens
        owed = self._still_owed() + tokens if self.rights.tokens is not None else 0.0
        self._owed, self._owed_at = owed, time.monotonic()
        self._seconds += (seconds - self._seconds) / 8
        self._free()

    @property
    def _full(self) -> bool:
        limit = self.rights.requests
        return limit is not None and self.running >= limit

    def _still_owed(self) -> float:
        if (limit := self.rights.tokens) is None:
            return 0.0
        return max(0.0, self._owed - (time.monotonic() - self._owed_at) * limit / MINUTE)

    def _token_wait(self) -> float:
        """Return the seconds until fewer tokens are owed than the limit; 0 if that is so now."""
        limit, owed = self.rights.tokens, self._still_owed()
        return 0.0 if limit is None or owed < limit else (owed - limit + 1) * MINUTE / limit

    async def _turn(self) -> None:
        """Take a place, in the order of the calls."""
        if not self._full and not self._turns:
            self.running += 1
            return
        turn = asyncio.get_running_loop().create_future()
        self._turns.append(turn)
        try:
            await turn
        except BaseException:
            if turn.done() and not turn.cancelled():  # it got the place at the same moment
                self._free()
            else:
                with suppress(ValueError):
                    self._turns.remove(turn)
            raise

    def _free(self) -> None:
        self.running -= 1
        while self._turns and not self._full:
            if not (turn := self._turns.popleft()).done():
                self.running += 1
                turn.set_result(None)


class Limits:
    """Accounts of all keys, by their names."""

    def __init__(self) -> None:
        self.accounts: dict[str, Account] = {}

    @asynccontextmanager
    async def use(self, record: Record | None, request: AnyRequest, seconds: float) -> AsyncIterator[Use]:
        """Let a request of the record's call run within the limits of its key, and count what it uses.

        The first request of a call is refused beyond a limit, with RateLimited. Its further ones, such as the documents
        of one message, wait for their turn: a call that is larger than a limit would never succeed. Raises
        DeadlineExceeded if that takes more than `seconds`. A request that nobody waited for counts about its prompt, if
        the block has set no tokens.
        """
        use = Use()
        if record is None or record.key is None:
            yield use
            return
        account = self.accounts.setdefault(record.key, Account())
        account.rights = record.rights
        if record.admitted:
            await account.enter_in_turn(seconds)
        else:
            account.enter()
            record.admitted = True
        began = time.monotonic()
        current.set(use)
        try:
            yield use
        except (asyncio.CancelledError, GeneratorExit, DeadlineExceeded):
            use.tokens = use.tokens or estimated_tokens(request)
            raise
        finally:
            account.leave(use.tokens, time.monotonic() - began)


current: ContextVar[Use | None] = ContextVar("current", default=None)
"""Use of the request that this task works for."""


def note_answer(answer: Answer) -> None:
    """Count the tokens of a whole answer to a native request of the current one, also if another one of these fails."""
    note_tokens(getattr(getattr(answer, "usage", None), "total_tokens", 0) or 0)


def note_tokens(count: int) -> None:
    """Count tokens of the current request."""
    if (use := current.get()) is not None:
        use.tokens += count


def estimated_tokens(request: AnyRequest) -> int:
    """Return about the tokens of a request's prompt."""
    return len(request.model_dump_json(exclude_none=True)) // BYTES_PER_TOKEN


def _refusal(why: str, seconds: int) -> RateLimited:
    seconds = max(1, seconds)
    return RateLimited(f"this key has {why}: try again in {seconds} s", retry_after=seconds)
