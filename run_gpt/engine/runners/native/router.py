"""Router of a layer's experts: the numbers by which the kernels choose and weigh them."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Router:
    """Choice of each token's experts, by the scores that a small linear layer gives them."""

    chosen: int
    """Number of experts of a token."""
    width: int
    """Intermediate size of an expert."""
    shared: int = 0
    """Intermediate size of the MLP that all tokens share; 0: there is none."""
    sigmoid: bool = False
    """True if a score is the sigmoid of its own logit; False for the softmax of all logits."""
    renormalised: bool = True
    """True if the weights of a token's experts are scaled to a sum of 1. After a softmax of all logits this is the
    softmax of the chosen ones."""
    scale: float = 1
    """Factor of the weights, after that."""
    groups: int = 1
    """Number of groups of experts. Only experts of the best groups are chosen."""
    chosen_groups: int = 1
    """Number of the best groups."""
    alpha: float = 0
    """Factor in the sigmoid of gpt-oss's activation."""
    limit: float = 0
    """Bound of the inputs of that activation; 0 for the model's usual one."""
