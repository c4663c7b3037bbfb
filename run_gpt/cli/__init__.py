"""The `rungpt` command: parses, builds a configuration, calls, prints. No logic of its own."""

import sys


def main() -> None:
    """Run the command line. Every error of ours is one line on stderr and exit code 1."""
    from run_gpt.cli.app import app
    from run_gpt.errors import RunGPTError

    try:
        app(prog_name="rungpt")
    except RunGPTError as error:
        print(f"rungpt: {error.message}", file=sys.stderr)
        sys.exit(1)
    except BrokenPipeError:  # `rungpt ... | head`
        sys.stderr.close()
        sys.exit(1)
