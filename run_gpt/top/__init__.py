"""Live view of a running server for `rungpt top`, read from outside by `GET /metrics` and `GET /ready`."""
