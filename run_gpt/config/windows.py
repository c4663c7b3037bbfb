"""Size of the native runner's cache of layers with a sliding window, for the runner and for estimates before it."""

BLOCK = 64
"""Number of positions that attention takes together; a layer's cache has whole blocks."""
BACK = 1024
"""Smallest number of positions that a ring holds beside its window. So a prompt can take over a prefix after which up
to so many tokens have been written: the rest of another prompt, or an answer that is not repeated as it was."""


def ring_size(window: int, step: int) -> int:
    """Return the number of positions that a layer's ring holds of a sequence; `step`: most tokens of it in one step.

    A step writes the keys and values of all its tokens before the first of them attends, and rejected drafts stay
    where they are. So a ring holds the window and what a step writes. Attention reads whole blocks: up to a block less
    one before the window, where values of later positions would be multiplied with 0, though they may be no numbers.
    And a step that ends at the first position of a pair clears the second one.
    """
    return (window + max(BACK, step) + 2 * BLOCK - 1) // BLOCK * BLOCK
