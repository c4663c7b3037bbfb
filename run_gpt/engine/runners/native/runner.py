"""Native runner: one call of a compiled forward pass for each step, for any mix of prompts and answers."""

from array import array
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import torch

from run_gpt.config import EngineConfig
from run_gpt.engine.plan import ScheduledTokens
from run_gpt.engine.runners import llama
from run_gpt.engine.runners.base import TransformersRunner
from run_gpt.engine.runners.lora import Lora
from run_gpt.engine.runners.native.binding import GROUP, LANES, Context, Memory, ModelStruct
from run_gpt.engine.runners.native.loras import NativeLoras
from run_gpt.engine.runners.native.pace import Pace
from run_gpt.engine.runners.native.weights import PackedWeights
from run_gpt.engine.slots import Copy
from run_gpt.errors import ModelLoadError

MAX_SIZE = 512
"""Largest size of an attention head."""
BLOCK = 64
"""Number of positions that attention takes together; a slot holds whole blocks."""
ANGLES_AT_ONCE = 4096
"""Number of positions whose rotary angles are computed together."""
PRECISIONS = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
"""Precisions of weights that are not packed into fewer bits."""


def fits(model: Any) -> bool:
    """Return True when this runner computes the same as the model: see `llama.fits`; on a CPU, in sizes that fit."""
    return model.dtype in PRECISIONS and model.device.type == "cpu" and llama.fits(model) and fits_config(model.config)


def fits_config(config: Any) -> bool:
    """Return the part of `fits` that the configuration decides, before the model is loaded."""
    if not llama.fits_config(config):
        return False
    size = _head_size(config)
    sizes = (config.hidden_size, config.intermediate_size, config.num_attention_heads * size)
    return (
        all(width % GROUP == 0 for width in sizes)
        and config.num_key_value_heads * size % LANES == 0
        and size % 2 == 0
        and size <= MAX_SIZE
        and not getattr(config, "mlp_bias", False)
    )


def _address(numbers: "array[int]") -> int:
    """Return the address of the first number, valid while the array lives. Creating a tensor would take longer."""
    address, _ = numbers.buffer_info()
    return address


def _head_size(config: Any) -> int:
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


class NativeRunner(TransformersRunner):
    """ModelRunner over compiled kernels.

    A sequence's logits do not depend on the rest of the batch, to the last bit, because the order of its sums does not.
    """

    reuses_prefixes = True
    cheap_tokens = 8
    """Number of cheap tokens. A step of one token waits for the weights from memory; 4 tokens take 1.4 times as long, 8
    tokens 2.3 times. Accepted drafts pay for that; sequences whose drafts are rejected get none."""

    def __init__(self, model: Any, weights: PackedWeights, config: EngineConfig):
        """`weights`: the model's joined weights. The cache is fp32 for weights in fp32 or fp16, else bf16.

        The model itself is not changed until `take_over`, so that another runner may use it meanwhile. Raises
        ModelLoadError if there is no address space for the cache.
        """
        super().__init__(model)
        kernels = weights.kernels
        self._kernels, self._weights = kernels, weights
        threads = torch.get_num_threads()
        self._context, self._pace = Context(kernels, threads), Pace(threads)
        self._loras = NativeLoras(len(model.model.layers))  # for steps; the base's adapters are for beam search
        weights.link(model)
        shape, size = model.config, _head_size(model.config)
        context = config.max_context or shape.max_position_embeddings
        positions = (context + BLOCK - 1) // BLOCK * BLOCK
        # Address space, which takes memory as sequences grow: a whole table of a million tokens takes gigabytes.
        self._tables, self._known = [torch.empty(positions, size // 2) for _ in range(2)], 0
        cos, sin = (table.data_ptr() for table in self._tables)
        self._struct = ModelStruct(
            layers=shape.num_hidden_layers,
            hidden=shape.hidden_size,
            heads=shape.num_attention_heads,
            kv_heads=shape.num_key_value_heads,
            head_size=size,
            intermediate=shape.intermediate_size,
            vocabulary=self._weights.head.outputs,
            slots=config.max_running,
            positions=positions,
            bf16_cache=weights.precision not in ("fp32", "fp16"),
            epsilon=shape.rms_norm_eps,
            attention_scale=size**-0.5,
            layer=self._weights.layers,
            embedding=self._weights.embedding.struct,
            head=self._weights.head.struct,
            norm=self._weights.norm,
            cos=cos,
            sin=sin,
        )
        cache_bytes = kernels.cache_bytes(self._struct)
        self.cache_bytes_per_token = 2 * cache_bytes // (self._struct.slots * self._struct.positions)
        try:
            self._cache = [Memory(kernels, cache_bytes, dense=False) for _ in range(2)]
        except MemoryError as error:
            raise ModelLoadError(
                f"no address space for {config.max_running} slots of {positions} tokens: lower --max-running or "
                "--max-context"
            ) from error
        self._struct.keys, self._struct.values = (memory.address for memory in self._cache)
        # Kept from step to step: the system takes a millisecond to zero new memory for 64 rows.
        self._logits = torch.empty(0, self._struct.vocabulary)

    def take_over(self) -> None:
        """Free the model's own weights: beam search uses the packed ones from now on."""
        self._weights.replace(self._model)
        self._adapters.refresh()

    def forward(self, runs: Sequence[ScheduledTokens]) -> torch.Tensor:
        """See ModelRunner."""
        ends = accumulate(len(run.token_ids) for run in runs)
        which = [i for run, end in zip(runs, ends, strict=True) for i in range(end - run.num_logits, end)]
        wanted = array("i", which)
        if len(which) > len(self._logits):
            self._logits = torch.empty(len(which), self._struct.vocabulary)
        logits = self._logits[: len(which)]
        self._run(runs, (len(which), _address(wanted), logits.data_ptr()), (0, None, None))
        return logits

    def likeliest(self, logits: torch.Tensor) -> list[int]:
        """See ModelRunner. All threads are used, because the logits of many rows exceed the CPU's caches."""
        tokens = array("i", bytes(4 * len(logits)))
        vocabulary = logits.shape[-1]
        self._kernels.likeliest(self._context.handle, logits.data_ptr(), len(logits), vocabulary, _address(tokens))
        return tokens.tolist()

    def embed(self, runs: Sequence[ScheduledTokens]) -> torch.Tensor:
        """See ModelRunner."""
        ends = array("i", accumulate(len(run.token_ids) for run in runs))
        states = torch.empty(len(runs), self._struct.hidden)
        self._run(runs, (0, None, None), (len(runs), _address(ends), states.data_ptr()))
        return states

    def _run(self, runs: Sequence[ScheduledTokens], logits: tuple[Any, ...], states: tuple[Any, ...]) -> None:
        """Run the forward pass. `logits` and `states`: see rungpt_forward."""
        tokens = [token for run in runs for token in run.token_ids]
        if not tokens or not 0 <= min(tokens) <= max(tokens) < self._struct.vocabulary:
            raise IndexError(f"token ids {min(tokens, default=None)} to {max(tokens, default=None)}")
        if (last := max(run.start + len(run.token_ids) for run in runs)) > self._struct.positions:
            raise IndexError(f"{last} tokens, of {self._struct.positions}")
        self._extend_angles(last)
        inputs = [
            array("i", tokens),
            array("i", [run.slot for run in runs for _ in run.token_ids]),
            array("i", [run.start + i for run in runs for i in range(len(run.token_ids))]),
        ]
        addresses = [_address(numbers) for numbers in inputs]
        loras = self._loras.of_tokens(runs)
        with self._pace.step(len(tokens)) as alone:
            self._kernels.forward(
                self._context.handle, alone, self._struct, len(tokens), *addresses, loras, *logits, *states
            )

    def _extend_angles(self, length: int) -> None:
        """Make sure that the tables of rotary angles hold this number of positions."""
        while self._known < length:
            end = min(self._known + ANGLES_AT_ONCE, len(self._tables[0]))
            rotary, like = self._model.model.rotary_emb, torch.empty(0, dtype=torch.float32)
            for table, new in zip(self._tables, rotary(like, torch.arange(self._known, end)[None]), strict=True):
                table[self._known : end] = new[0, :, : table.shape[1]]
            self._known = end

    def copy(self, copies: Sequence[Copy]) -> None:
        """See ModelRunner."""
        for copy in copies:
            self._kernels.copy(self._struct, copy.source, copy.target, copy.length)

    def release(self, slots: Sequence[int]) -> None:
        """See ModelRunner."""
        for slot in slots:
            self._kernels.release(self._struct, slot)

    def reset(self) -> None:
        """See ModelRunner."""
        self.release(range(self._struct.slots))

    def add_adapter(self, lora: Lora) -> None:
        """See ModelRunner."""
        super().add_adapter(lora)
        try:
            self._loras.add(lora)
        except ValueError:
            super().remove_adapter(lora)
            raise

    def remove_adapter(self, lora: Lora) -> None:
        """See ModelRunner."""
        super().remove_adapter(lora)
        self._loras.remove(lora)
