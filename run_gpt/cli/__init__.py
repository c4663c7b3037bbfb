"""The `rungpt` command: parses, builds a configuration, calls, prints. No logic of its own."""

import sys


def main() -> None:
    """Run the command line. Every error of ours is one line on stderr and exit code 1."""
    from run_gpt.cli.app import app
    from run_gpt.errors import RequestError, RunGPTError

    try:
        app(prog_name="rungpt")
    except RunGPTError as error:
        # By this the server's operator finds what went wrong.
        request_id = error.request_id if isinstance(error, RequestError) and error.http_status >= 500 else None
        named = f" (request {request_id})" if request_id else ""
        print(f"rungpt: {error.message}{named}", file=sys.stderr)
        sys.exit(1)
    except BrokenPipeError:  # `rungpt ... | head`
        sys.stderr.close()
        sys.exit(1)
