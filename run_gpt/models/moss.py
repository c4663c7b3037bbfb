"""MOSS with transformers' own CodeGen classes: the architecture and the names of the weights are the same.

The checkpoints (`fnlp/moss-moon-003-*`) bring Python code that was written for transformers 4. Apart from names it is
CodeGen's: fused projections of queries, values and keys in four parts, GPT-J's rotary embedding of the first
`rotary_dim` numbers of a head, attention and feed-forward side by side, and an untied head with a bias. So no code of
the checkpoint is needed. The tokenizer is also of GPT-2's kind, with vocab.json and merges.txt.
"""

from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    CodeGenConfig,
    CodeGenForCausalLM,
    CodeGenTokenizer,
)


class MossConfig(CodeGenConfig):  # type: ignore[misc]
    """CodeGen's configuration under the name that the checkpoints give it."""

    model_type = "moss"


class MossForCausalLM(CodeGenForCausalLM):  # type: ignore[misc]
    """CodeGen's model. The checkpoints also hold each layer's causal mask, which is ignored and computed anew."""

    config_class = MossConfig
    _keys_to_ignore_on_load_unexpected = (r"h\.\d+\.attn\.causal_mask",)


class MossTokenizer(CodeGenTokenizer):  # type: ignore[misc]
    """CodeGen's tokenizer under the name that the checkpoints give it."""


def register() -> None:
    """Make transformers' Auto classes load a `model_type` of moss with these classes."""
    AutoConfig.register("moss", MossConfig, exist_ok=True)
    AutoModelForCausalLM.register(MossConfig, MossForCausalLM, exist_ok=True)
    AutoTokenizer.register(MossConfig, tokenizer_class=MossTokenizer, exist_ok=True)
