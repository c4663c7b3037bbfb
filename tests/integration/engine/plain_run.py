"""A run without a scheduler behind it."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Run:
    """What runners read of `run_gpt.engine.scheduler.Run`."""

    slot: int
    start: int
    token_ids: tuple[int, ...]
    wanted: int
    adapter: object = None

    @property
    def end(self) -> int:
        """The position after the last token."""
        return self.start + len(self.token_ids)
