"""`python -m run_gpt.cli` is `rungpt`."""

from run_gpt.cli import main

main()
