"""Requests that a client sends before it has read the answers to others: a few are parsed, the rest waits as bytes."""

from uvicorn.protocols.http.flow_control import FlowControl

MAX_PIPELINED = 16
"""Most requests that wait while another one is answered; what comes after them is not parsed yet."""
HEAD_END = b"\r\n\r\n"


class Flow(FlowControl):
    """Flow control of a connection. It does not read on while received bytes wait to be parsed."""

    rest = b""
    """Bytes that wait."""

    def resume_reading(self) -> None:
        """See FlowControl."""
        if not self.rest:
            super().resume_reading()


def end_of_heads(data: bytes, begin: int, count: int) -> int:
    """Return the end of the first part of `data` from `begin` on that has `count` ends of heads."""
    end = begin
    for _ in range(count):
        if (found := data.find(HEAD_END, end)) < 0:
            return len(data)
        end = found + len(HEAD_END)
    return end
