"""Measure a model without a server: `rungpt bench model`, for a clone whose command line is not installed.

python scripts/benchmark.py --help
"""

import sys
from pathlib import Path

import typer

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from run_gpt.cli.bench_model import model
from run_gpt.errors import RunGPTError

if __name__ == "__main__":
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(model)
    try:
        app(prog_name="benchmark.py")
    except RunGPTError as error:
        sys.exit(f"benchmark.py: {error.message}")
