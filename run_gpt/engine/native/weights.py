"""A transformers model's weights, packed for the kernels."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from run_gpt.engine.native.binding import FORMATS, Context, Kernels, LayerStruct, Matrix, Memory
from run_gpt.engine.native.modules import PackedEmbedding, PackedLinear


class PackedWeights:
    """All weights of a Llama-like model as the kernels' structures, which live as long as this does."""

    def __init__(self, model: Any, kernels: Kernels, precision: str):
        """`precision`: one of FORMATS. In bit4 the embedding and the output layer are bit8: they lose much in 4 bits,
        and are a small part of a model. The model itself stays as it is until `take_over`.
        """
        self._model, self._kernels, self._precision = model, kernels, precision
        self._outer = "bit8" if precision == "bit4" else precision
        # Beam search runs beside the engine, in the model's own forward pass.
        self._context = Context(kernels, torch.get_num_threads())
        # One piece of memory for all: a huge page, which spares one row a tenth of its time, is larger than a layer.
        self._memory = Memory(kernels, self._bytes(), dense=True)
        self._places: list[tuple[nn.Module, str, nn.Module]] = []
        self._kept: list[Any] = []
        self.error = 0.0
        """The largest error of a packed weight: see Matrix."""
        decoder = model.model
        self.layers = (LayerStruct * len(decoder.layers))(*(self._layer(layer) for layer in decoder.layers))
        self.head = self._taken_over(model, "lm_head", precision=self._outer)
        self.embedding = self.head
        if model.lm_head.weight is not decoder.embed_tokens.weight:
            self.embedding = self._matrix([decoder.embed_tokens], self._outer)
        self._places.append((decoder, "embed_tokens", PackedEmbedding(self.embedding, model.dtype)))
        self.norm = self.floats(decoder.norm.weight)

    def take_over(self) -> None:
        """Let the model's own forward pass use the packed weights as well; its own are freed."""
        for owner, name, module in self._places:
            setattr(owner, name, module)
        for parameter in self._model.parameters():  # norms and the like: views of a file that would stay mapped
            parameter.data = parameter.detach().clone()
        self._kernels.trim()

    def floats(self, tensor: torch.Tensor) -> int:
        """The address of a copy in fp32, which is kept."""
        kept = tensor.detach().float().contiguous().clone()
        self._kept.append(kept)
        return int(kept.data_ptr())

    def _bytes(self) -> int:
        """Of memory, at most."""
        sizes = [
            self._kernels.matrix_bytes(FORMATS[self._outer], *module.weight.shape)
            for module in self._model.modules()
            if isinstance(module, nn.Linear | nn.Embedding)
        ]
        return int(sum(sizes)) + 64 * len(sizes)

    def _layer(self, layer: Any) -> LayerStruct:
        attention, mlp = layer.self_attn, layer.mlp
        return LayerStruct(
            qkv=self._taken_over(attention, "q_proj", "k_proj", "v_proj").struct,
            output=self._taken_over(attention, "o_proj").struct,
            gate_up=self._taken_over(mlp, "gate_proj", "up_proj", interleaved=True).struct,
            down=self._taken_over(mlp, "down_proj").struct,
            norm=self.floats(layer.input_layernorm.weight),
            mlp_norm=self.floats(layer.post_attention_layernorm.weight),
            q_norm=self.floats(attention.q_norm.weight) if hasattr(attention, "q_norm") else None,
            k_norm=self.floats(attention.k_norm.weight) if hasattr(attention, "k_norm") else None,
        )

    def _taken_over(
        self, owner: nn.Module, *names: str, interleaved: bool = False, precision: str | None = None
    ) -> Matrix:
        """These layers of `owner` as one matrix."""
        parts: list[Any] = [owner.get_submodule(name) for name in names]
        matrix, start = self._matrix(parts, precision or self._precision, interleaved=interleaved), 0
        for i, (name, part) in enumerate(zip(names, parts, strict=True)):
            place, outputs = i if interleaved else start, len(part.weight)
            module = PackedLinear(self._context, matrix, place, outputs, interleaved=interleaved)
            self._places.append((owner, name, module))
            start += outputs
        return matrix

    def _matrix(self, parts: Sequence[Any], precision: str, *, interleaved: bool = False) -> Matrix:
        pairs = [(part.weight, getattr(part, "bias", None)) for part in parts]
        matrix = Matrix(self._kernels, precision, pairs, interleaved=interleaved, memory=self._memory)
        self._kept.append(matrix)
        self.error = max(self.error, matrix.error)
        return matrix
