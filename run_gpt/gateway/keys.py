"""The keys of a gateway: their sources, the check of a request's key, and the repeated reading of the file."""

import asyncio
import base64
import binascii
import hmac
import logging
import os
import re
import stat
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Self

from run_gpt.config import API_KEY_VARIABLE, GatewayConfig
from run_gpt.errors import AuthenticationError, SetupError
from run_gpt.gateway.guesses import Guesses
from run_gpt.gateway.rights import EVERYTHING, Rights, parse_rights

log = logging.getLogger(__name__)

DEFAULT_NAME = "default"
"""Name of the key that has no name of its own: the one from --api-key or the environment."""
API_KEY_HEADER = "x-api-key"
"""Header, and key of gRPC's metadata, that takes a key as it is."""
LEAST_KEY, MOST_KEY = 8, 512
"""Least and greatest number of characters of a key."""
MOST_FILE_BYTES = 1024 * 1024
LOOK_SECONDS = 0.25
"""Interval of checks of the file, in seconds, while requests come."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")
_KEY = re.compile(rf"[!-~]{{{LEAST_KEY},{MOST_KEY}}}")
_A_KEY = f"a key has {LEAST_KEY} to {MOST_KEY} printable ASCII characters and no spaces"


@dataclass(frozen=True)
class Key:
    """One key that is accepted."""

    digest: bytes = field(repr=False)
    """SHA-256 of it."""
    rights: Rights = EVERYTHING


class Keys:
    """The keys that are accepted: `key`, named `default`, and those in `file`. Raises SetupError.

    Only the SHA-256 digest of a key is kept. When the file changes, its new keys hold within LOOK_SECONDS. A file that
    is then missing or malformed changes nothing and is a warning; a file without keys admits no client. So is a file
    that everybody on the machine may read; one that they may write is refused.
    """

    def __init__(self, key: str | None = None, file: Path | None = None):
        self._own: dict[str, Key] = {}
        if key is not None:
            if not _KEY.fullmatch(key):
                raise SetupError(f"--api-key or ${API_KEY_VARIABLE}: {_A_KEY}")
            self._own[DEFAULT_NAME] = Key(_digest(key))
        self._file = file
        self._named: dict[str, Key] = {}
        self._seen: bytes | str = b""
        """State of the file at the last look: a digest of its bytes, or the reason why it could not be read."""
        self._look_at = 0.0
        self._looking: asyncio.Future[dict[str, Key]] | None = None
        """Look at the file in progress."""
        self._guesses = Guesses()
        self._readable = False
        """True when everybody may read the file, which is one warning."""
        if file is not None:
            content = self._read(file)
            self._named = parse_keys(content, file, self._own)
            self._noted(sha256(content).digest())
        if file is not None and not self.names:
            log.warning("%s has no key in it: every request is refused", file)

    @classmethod
    def of(cls, config: GatewayConfig, key: str | None) -> Self | None:
        """Return the keys of a gateway whose environment holds `key`; None if it needs none. Raises SetupError."""
        if key is not None or config.api_key_file is not None:
            return cls(key, config.api_key_file)
        if config.require_key:
            raise SetupError(
                f"this server must not start without a key: set {API_KEY_VARIABLE} in its environment, "
                "or name a file of keys as api_key_file"
            )
        return None

    @property
    def names(self) -> list[str]:
        """Names of the keys that are accepted now."""
        return [*self._own, *self._named]

    async def refresh(self) -> None:
        """Read the file again if that was LOOK_SECONDS ago. Await this before `check`.

        That is done in a thread: a file of a megabyte takes seconds. Requests wait meanwhile: the new file may not have
        their key.
        """
        if self._file is None or (self._looking is None and time.monotonic() < self._look_at):
            return
        if self._looking is None:
            self._looking = asyncio.ensure_future(asyncio.to_thread(self._look, self._file))
            self._looking.add_done_callback(self._looked)
        await asyncio.shield(self._looking)

    def _looked(self, looking: asyncio.Future[dict[str, Key]]) -> None:
        self._looking = None
        if not looking.cancelled() and looking.exception() is None:
            self._named = looking.result()  # here and not in the thread: nothing changes between `check` and `rights`

    def check(self, key: str) -> str:
        """Return the name of the key. Raises AuthenticationError if it is none of ours."""
        given, found = _digest(key), None
        for name, known in (*self._own.items(), *self._named.items()):  # all of them, for constant time
            if hmac.compare_digest(known.digest, given):
                found = name
        if found is None:
            raise AuthenticationError("the key is wrong, or is not valid any more")
        return found

    def rights(self, name: str) -> Rights:
        """Return the rights of the key of this name."""
        return (self._own.get(name) or self._named[name]).rights

    async def admit(self, key: str, address: str) -> tuple[str, Rights]:
        """Return the name and the rights of a key that came from this address, after its delay (see Guesses).

        Raises AuthenticationError if it is none of ours.
        """
        await self.refresh()
        try:
            name = self.check(key)
        except AuthenticationError:
            await self.settle(key, address, right=False)
            raise
        rights = self.rights(name)  # before the wait, in which the file may change
        await self.settle(key, address, right=True)
        return name, rights

    async def settle(self, key: str, address: str, *, right: bool) -> None:
        """Wait as long as the answer to this key must from this address, and note the key there."""
        await self._guesses.wait(address, _digest(key), right=right)

    def _read(self, file: Path) -> bytes:
        content, readable = _read(file)
        if readable and not self._readable:
            log.warning("%s: everybody on this machine may read these keys: chmod o-r", file)
        self._readable = readable
        return content

    def _look(self, file: Path) -> dict[str, Key]:
        """Return the keys that the file has now, or those that it had if they stay. Blocks."""
        named = self._named
        try:
            content = self._read(file)
        except SetupError as error:
            if self._seen != error.message:
                log.warning("%s; the keys that were in it before stay", error.message)
            self._noted(error.message)
            return named
        digest = sha256(content).digest()
        if digest != self._seen:
            try:
                named = parse_keys(content, file, self._own)
                log.warning("%s has changed: it has %d keys now", file, len(named))
            except SetupError as error:
                log.warning("%s; the keys that were in it before stay", error.message)
        self._noted(digest)
        return named

    def _noted(self, seen: bytes | str) -> None:
        self._seen = seen
        self._look_at = time.monotonic() + LOOK_SECONDS


def parse_keys(content: bytes, file: Path, taken: dict[str, Key] | None = None) -> dict[str, Key]:
    """Return the keys in a file, by name: a line `NAME: KEY RIGHTS` for each, blank lines, and comments (`#`).

    `taken`: keys that exist beside them, by name. Raises SetupError, which gives the line, but never the key.
    """
    found: dict[str, Key] = {}
    names = {known.digest: name for name, known in (taken or {}).items()}
    for number, raw in enumerate(content.removeprefix(b"\xef\xbb\xbf").split(b"\n"), 1):
        where = f"{file}, line {number}"
        line = raw.decode("utf-8", "replace").strip()
        if not line or line.startswith("#"):
            continue
        name, colon, rest = (part.strip() for part in line.partition(":"))
        key, *words = rest.split() or [""]
        if not colon:
            raise SetupError(f"{where}: write NAME: KEY")
        if not _NAME.fullmatch(name):
            raise SetupError(f"{where}: a name has up to 100 of A-Z a-z 0-9 _ . - and begins with a letter or digit")
        if not _KEY.fullmatch(key):
            raise SetupError(f"{where}: {_A_KEY}")
        if name in found or name in (taken or {}):
            raise SetupError(f"{where}: there is another key called {name}")
        digest = _digest(key)
        if (twin := names.setdefault(digest, name)) != name:
            raise SetupError(f"{where}: {name} has the same key as {twin}")
        found[name] = Key(digest, parse_rights(words, where))
    return found


def sent_key(authorization: Iterable[str], api_key: Iterable[str] = (), *, plain: bool = False) -> str:
    """Return the key in the values of a request's headers: see `_key_in` for `Authorization`, or `X-Api-Key` alone.

    `plain`: the key alone is accepted in `Authorization`, too. Raises AuthenticationError where there is no key, and
    for several keys: to choose one of them would hide a client's mistake.
    """
    sent = [*(_key_in(value, plain=plain) for value in authorization), *filter(None, map(str.strip, api_key))]
    if len(set(sent)) > 1:
        raise AuthenticationError("the request has several keys, in `Authorization` or `X-Api-Key`: send one")
    if not sent:
        raise AuthenticationError("this server needs a key: send `Authorization: Bearer KEY`")
    return sent[0]


def _key_in(authorization: str, *, plain: bool) -> str:
    """Return the key in an `Authorization` header's value: `Bearer KEY`, or `Basic` with the key as the password."""
    scheme, _, rest = authorization.strip().partition(" ")
    kind, rest = scheme.lower(), rest.strip()
    if kind == "bearer" and rest:
        return rest
    if kind == "basic" and rest:
        return _password(rest)
    if plain and scheme and not rest:
        return scheme
    raise AuthenticationError("this server needs a key: send `Authorization: Bearer KEY`")


def _password(encoded: str) -> str:
    try:
        return base64.b64decode(encoded, validate=True).decode("utf-8", "replace").partition(":")[2]
    except (binascii.Error, ValueError):
        raise AuthenticationError("Authorization: what follows Basic is not base64 of USER:KEY") from None


def _digest(key: str) -> bytes:
    return sha256(key.encode("utf-8", "surrogatepass")).digest()


def _read(file: Path) -> tuple[bytes, bool]:
    """Return the file's content, and True if everybody may read it. Raises SetupError, also if everybody may write."""
    try:
        with file.open("rb") as opened:
            mode = os.fstat(opened.fileno()).st_mode
            content = opened.read(MOST_FILE_BYTES + 1)
    except OSError as error:
        raise SetupError(f"the file of keys {file} cannot be read: {error.strerror}") from error
    if len(content) > MOST_FILE_BYTES:
        raise SetupError(f"the file of keys {file} has more than {MOST_FILE_BYTES} bytes")
    if stat.S_ISREG(mode) and mode & stat.S_IWOTH:
        raise SetupError(f"the file of keys {file} may be written by everybody on this machine: chmod o-w")
    return content, stat.S_ISREG(mode) and bool(mode & stat.S_IROTH)
