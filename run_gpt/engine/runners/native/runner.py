"""Native runner: one call of a compiled forward pass for each step, for any mix of prompts and answers."""

from array import array
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from run_gpt.config import EngineConfig
from run_gpt.config.windows import BLOCK
from run_gpt.engine.plan import Position, ScheduledTokens
from run_gpt.engine.runners.base import TransformersRunner
from run_gpt.engine.runners.lora import Lora
from run_gpt.engine.runners.native.binding import ACTIVATIONS, GROUP, LANES, Context, Matrix, Memory
from run_gpt.engine.runners.native.choices import choose
from run_gpt.engine.runners.native.families import family_of, shape_of
from run_gpt.engine.runners.native.inspection import expert_sizes, submodule
from run_gpt.engine.runners.native.loras import NativeLoras
from run_gpt.engine.runners.native.pace import Pace
from run_gpt.engine.runners.native.structs import ModelStruct
from run_gpt.engine.runners.native.structure import Rotary, Structure
from run_gpt.engine.runners.native.weights import PackedWeights
from run_gpt.engine.runners.native.windows import ring_of
from run_gpt.engine.slots import Copy
from run_gpt.errors import ModelLoadError

MAX_SIZE = 512
"""Largest size of an attention head."""
_UNKNOWN_CONTEXT = 2048
OWN_CODE = "transformers_modules."
"""Beginning of the names of the modules that come with a model."""
PRECISIONS = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
"""Precisions of weights that are not packed into fewer bits."""


def fits(model: Any) -> bool:
    """Return True when this runner computes the same as the model: a known family, plain weights, on the CPU."""
    own_code = type(model).__module__.startswith(OWN_CODE)  # it may be another model of the same name
    if own_code or model.dtype not in PRECISIONS or model.device.type != "cpu" or not fits_config(model.config):
        return False
    family = family_of(model.config)
    assert family is not None  # checked by fits_config
    names = family.names(model.config)
    plain = True
    for i in range(len(model.get_submodule(names.layers))):
        layer = model.get_submodule(f"{names.layers}.{i}")
        experts = submodule(layer, names.experts)
        linear = names.of_layer(experts=experts is not None).linear
        plain = plain and all(_is_plain(layer.get_submodule(name)) for joined in linear for name in joined)
        plain = plain and (experts is None or (_is_own(experts) and expert_sizes(experts) is not None))
    hooked = any(hasattr(module, "_hf_hook") for module in model.modules())
    return plain and not hooked and bool(model.get_output_embeddings().weight.is_floating_point())


def _is_plain(module: nn.Module) -> bool:
    """Return True for a layer of torch or of a model of transformers: those of quantisers are subclasses of theirs."""
    return _is_own(module) and isinstance(module, nn.Linear | Conv1D)


def _is_own(module: nn.Module) -> bool:
    """Return True for a module of torch or of a model of transformers."""
    return type(module).__module__.startswith(("torch.nn.", "transformers.models.", "transformers.pytorch_utils"))


def fits_config(config: Any) -> bool:
    """Return the part of `fits` that the configuration decides, before the model is loaded."""
    shape = shape_of(config)
    if shape is None:
        return False
    sizes = [shape.hidden, shape.intermediate, shape.heads * shape.head_size]
    if shape.router is not None:
        sizes += [shape.router.width, shape.router.shared]
    return (
        all(width % GROUP == 0 for width in sizes)
        and shape.kv_heads * shape.head_size % LANES == 0
        and shape.head_size % 2 == 0
        and shape.head_size <= MAX_SIZE
    )


def _address(numbers: "array[int]") -> int:
    """Return the address of the first number, valid while the array lives. Creating a tensor would take longer."""
    address, _ = numbers.buffer_info()
    return address


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
        family, shape = family_of(model.config), shape_of(model.config)
        assert family is not None  # checked by `fits`
        assert shape is not None
        names = family.names(model.config)
        self._loras = NativeLoras(names, shape)  # for steps; the base's adapters are for beam search
        positions = _positions(model.config, config)
        self._angles = Rotary(model, names, shape, positions)
        self.ring = ring_of(shape, positions, max(config.max_step_tokens, self.cheap_tokens))
        bound = self.ring.size if self.ring else positions
        kept = [bound if kind in shape.windows else positions for kind in shape.kinds]
        self._structure = Structure(model, weights, names, shape, self._angles, kept)
        self._embedding, self._head = _outer(model, weights)
        self._struct = ModelStruct(
            layers=len(shape.kinds),
            hidden=shape.hidden,
            heads=shape.heads,
            kv_heads=shape.kv_heads,
            head_size=shape.head_size,
            intermediate=shape.intermediate,
            vocabulary=self._head.outputs,
            slots=config.max_running,
            positions=positions,
            bf16_cache=weights.precision not in ("fp32", "fp16"),
            gated=len(names.up) == 2 or shape.up_order is not None,
            activation=ACTIVATIONS.index(shape.activation),
            parallel=shape.parallel,
            rotated=shape.rotated,
            pairs=shape.pairs,
            attention_scale=shape.attention_scale,
            attention_cap=shape.attention_cap,
            logit_cap=shape.logit_cap,
            embedding_scale=shape.embedding_scale,
            residual_scale=shape.residual_scale,
            logit_scale=shape.logit_scale,
            clip=shape.clip,
            layer=self._structure.layers,
            embedding=self._embedding.struct,
            head=self._head.struct,
            embedding_norm=self._structure.embedding_norm,
            norm=self._structure.norm,
            learned=self._structure.learned,
            slopes=self._structure.slopes,
        )
        cache_bytes = kernels.cache_bytes(self._struct)
        self.cache_bytes_per_token = 2 * cache_bytes // (self._struct.slots * sum(kept)) * len(kept)
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

    def choose(self, logits: torch.Tensor, positions: Sequence[Position], end_ids: Sequence[int]) -> list[int]:
        """See ModelRunner."""
        return choose(self._context, logits, positions, end_ids)

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
        if self.ring and (most := max(len(run.token_ids) for run in runs)) > self.ring.back:
            raise IndexError(f"{most} tokens in a step, of {self.ring.back}")
        if (last := max(run.start + len(run.token_ids) for run in runs)) > self._struct.positions:
            raise IndexError(f"{last} tokens, of {self._struct.positions}")
        self._angles.extend(last)
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


def _positions(model_config: Any, config: EngineConfig) -> int:
    """Return the number of positions of a slot: whole blocks that hold the context."""
    own = (getattr(model_config, name, None) for name in ("max_position_embeddings", "max_seq_len", "seq_length"))
    context = config.max_context or next((length for length in own if length), _UNKNOWN_CONTEXT)
    return (context + BLOCK - 1) // BLOCK * BLOCK


def _outer(model: Any, weights: PackedWeights) -> tuple[Matrix, Matrix]:
    """Return the matrices of the embedding and of the output layer."""
    names = {id(module): name for name, module in model.named_modules()}
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    return weights.matrices[names[id(embedding)]], weights.matrices[names[id(head)]]
