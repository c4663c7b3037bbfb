"""A finding of the campaign: a promise of the server, the measured figure, and the verdict."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    """One promise after one attack."""

    promise: str
    figure: str
    """Measured values, with their units, in a short phrase."""
    held: bool
