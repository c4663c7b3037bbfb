"""The `rungpt` command: parses options, builds a configuration, calls the library and prints. No other logic."""

import sys


def main() -> None:
    """Run the command line. A RunGPTError becomes one line on stderr and exit code 1."""
    from run_gpt.cli.app import app
    from run_gpt.errors import RequestError, RunGPTError

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
