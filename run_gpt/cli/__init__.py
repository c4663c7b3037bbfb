"""The `rungpt` command: parses options, builds a configuration, calls the library and prints. No other logic."""

import os
import signal
import sys
from types import FrameType


def main() -> None:
    """Run the command line. A RunGPTError becomes one line on stderr and exit code 1."""
    before = signal.signal(signal.SIGINT, _leave)
    from run_gpt.cli.app import app, prepare
    from run_gpt.errors import RequestError, RunGPTError

    prepare(sys.argv[1:])
    signal.signal(signal.SIGINT, before)
    try:
        app(prog_name="rungpt")
    except RunGPTError as error:
        # The server's operator finds the error in the log by this id.
        request_id = error.request_id if isinstance(error, RequestError) and error.http_status >= 500 else None
        named = f" (request {request_id})" if request_id else ""
        print(f"rungpt: {error.message}{named}", file=sys.stderr)
        sys.exit(1)
    except BrokenPipeError:  # `rungpt ... | head`
        sys.stderr.close()
        sys.exit(1)


def _leave(signum: int, frame: FrameType | None) -> None:
    """End at once: while modules are imported there is nothing to finish, and an interrupt would show as an error."""
    os._exit(128 + signum)
