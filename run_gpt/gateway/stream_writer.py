"""`StreamWriter`: makes the bodies or server-sent events of a request's stream from the pieces of native answers."""

from collections.abc import Iterable, Sequence

from msgspec.structs import replace

from run_gpt.api.answers import Body
from run_gpt.api.endpoints import endpoint_of
from run_gpt.api.long_parts import Unread
from run_gpt.api.native_stream import NativeStream
from run_gpt.api.pieces import Head, Piece
from run_gpt.api.schema import Request
from run_gpt.api.translated import EventWriter, TranslatedRequest


class StreamWriter:
    """Writer of the stream of `request`, which stands for the requests `natives`. `model`: name of it in the answer."""

    def __init__(self, request: Request | TranslatedRequest, natives: Sequence[Request], model: str | None = None):
        self._natives = natives
        self._model = model
        self._streams: dict[int, NativeStream] = {}
        self._writer: EventWriter | None = request.writer() if isinstance(request, TranslatedRequest) else None
        self._unread = Unread(request)
        self._form = endpoint_of(request, stream=True).form

    @property
    def tokens(self) -> int:
        """Tokens so far of all prompts and answers."""
        return sum(stream.total_tokens for stream in self._streams.values())

    @property
    def unread_bytes(self) -> int:
        """Bytes of log-probabilities that are kept for the end of the stream."""
        return self._unread.size

    def begin(self, which: int, head: Head) -> None:
        """Take the head of native request number `which`."""
        head = head if self._model is None else replace(head, model=self._model)
        self._streams[which] = NativeStream(self._natives[which], head)

    def bodies(self, which: int, piece: Piece) -> list[Body]:
        """Make the bodies that a piece of native request number `which` adds to the stream."""
        event = self._streams[which].event(piece)
        return [event] if self._writer is None else list(self._writer.events(which, event))

    def sse(self, which: int, piece: Piece) -> bytes:
        """Write the same as server-sent events; a plain piece directly, without an object for it."""
        if piece.is_plain and (written := self._plain(which, piece)) is not None:
            return written
        if piece.logprobs:
            mark = self._unread.token((which, piece.index), piece.logprobs)
            piece = replace(piece, logprobs=[mark])
        return self._unread.fill(self.written(self.bodies(which, piece)))

    def written(self, bodies: Iterable[Body]) -> bytes:
        """Write bodies in the form of the stream."""
        return b"".join(map(self._form.write, bodies))

    def end(self) -> list[Body]:
        """Make the bodies that come after the last piece."""
        return [] if self._writer is None else list(self._writer.end())

    def _plain(self, which: int, piece: Piece) -> bytes | None:
        stream = self._streams[which]
        if self._writer is None:
            return stream.plain(piece)
        text = piece.text or piece.reasoning
        if (written := self._writer.plain(which, piece.index, text, thought=bool(piece.reasoning))) is not None:
            stream.count(piece)
        return written
