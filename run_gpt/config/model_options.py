"""Keyword parameters of `create_model`, for type checkers and editors. The configuration has their defaults."""

# Made by scripts/keyword_types.py: change the declarations there, and run it with --write.

from pathlib import Path
from typing import TypedDict

from run_gpt.config.values import GenerationConfig, KernelSource, Runner


class ModelOptions(TypedDict, total=False):
    """Further parameters of `create_model`."""

    revision: str | None
    """Branch, tag or commit of a model of the hub; default: the newest."""
    served_model_name: tuple[str, ...]
    """Name that requests use instead of the model's own; the first one is shown. Default: ()."""
    max_memory: dict[str | int, str | int] | None
    """Most memory for weights by GPU number or cpu, with a device map; the rest goes to the CPU and to disk."""
    tensor_parallel: int
    """Processes that each hold a share of every layer, if the family has a plan. Default: 1."""
    adapters: dict[str, str] | None
    """More LoRA adapters, by the names that requests use."""
    chat_template: str | None
    """A Jinja file, or the name of a template: one of the model's, or of ours, such as vicuna; default: the model's."""
    trust_request_chat_template: bool
    """Let requests bring a chat template as text, not only name one of the model's. Default: False."""
    generation_config: GenerationConfig
    """Sampling defaults of requests: auto: the model's generation_config.json; none: OpenAI's under /v1, else greedy.
    Default: auto."""
    allow_special_tokens: bool
    """Read special tokens, such as <|im_start|>, in the messages of chats; without it they are text. Default: False."""
    allow_pickle: bool
    """Load pickled weights, which can run any code. Default: False."""
    cache_dir: Path | None
    """Folder for what RunGPT makes of models; default: $RUNGPT_CACHE, else `~/.cache/rungpt`. Models of the hub lie in
    the hub's own cache (HF_HOME)."""
    max_running: int
    """Most sequences decoded together, in each replica. Default: 64."""
    max_waiting: int
    """Most sequences that wait for a slot; one more gets a QueueFull (429). Default: 256."""
    max_step_tokens: int
    """Most tokens in one step; longer prompts are run in parts. Default: 512."""
    runner: Runner
    """native: most families on a CPU; fast: Llama and similar models on a GPU or without a compiler; generic: all
    families; alone: one sequence at a time. Default: auto."""
    kernels: KernelSource
    """Native kernels: prebuilt: those that the package carries for this kind of CPU; compiled: for this very CPU, with
    its C++ compiler; auto: prebuilt if there are any. Default: auto."""
    max_context: int | None
    """Most tokens of prompt and answer together; default: the model's."""
    max_cache_tokens: int | None
    """Most tokens in the KV cache, of all sequences and those kept for reuse; default: what half of the free memory
    holds, at least one context."""
    reuse_prefixes: bool
    """Keep the KV cache of ended sequences, for prompts with the same beginning. Default: True."""
    compile: bool
    """Compile the model with torch.compile; generic runner only. Default: False."""
    speculate: bool
    """Draft tokens from earlier text under low load, and check several at once. Default: True."""
