"""Run without a scheduler."""

from dataclasses import dataclass


@dataclass(frozen=True)
class ScheduledTokens:
    """Fields of `run_gpt.engine.plan.ScheduledTokens` that runners read."""

    slot: int
    start: int
    token_ids: tuple[int, ...]
    num_logits: int
    adapter: object = None

    @property
    def end(self) -> int:
        """Position after the last token."""
        return self.start + len(self.token_ids)
