"""What `rungpt top` shows of a running server: read from outside, by `GET /metrics` and `GET /ready`."""
