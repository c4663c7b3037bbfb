"""Structures that the kernels read, as model.h declares them."""

from ctypes import POINTER, Structure, c_float, c_int32, c_int64, c_void_p


class MatrixStruct(Structure):
    """See Matrix in model.h."""

    _fields_ = (
        ("format", c_int32),
        ("outputs", c_int32),
        ("inputs", c_int32),
        ("data", c_void_p),
        ("bias", c_void_p),
        ("parts", c_void_p),
    )


class NormStruct(Structure):
    """See Norm in model.h."""

    _fields_ = (
        *((name, c_int32) for name in ("kind", "size")),
        ("epsilon", c_float),
        ("weight", c_void_p),
        ("bias", c_void_p),
    )


class ExpertsStruct(Structure):
    """See Experts in model.h."""

    _fields_ = (
        *((name, c_int32) for name in ("count", "chosen", "width", "sigmoid", "renormalised", "groups")),
        ("chosen_groups", c_int32),
        *((name, c_float) for name in ("scale", "alpha", "limit")),
        ("router", MatrixStruct),
        *((name, c_void_p) for name in ("up", "down", "correction", "shared_gate")),
    )


class LayerStruct(Structure):
    """See Layer in model.h."""

    _fields_ = (
        *((name, MatrixStruct) for name in ("qkv", "output", "up", "down")),
        *((name, NormStruct) for name in ("norm", "q_norm", "k_norm", "after_attention", "mlp_norm", "after_mlp")),
        *((name, c_void_p) for name in ("cos", "sin", "sinks", "experts")),
        *((name, c_int32) for name in ("window", "kept")),
        ("before", c_int64),
    )


class LoraStruct(Structure):
    """See Lora in model.h."""

    _fields_ = (*((name, c_int32) for name in ("rank", "outputs", "inputs")), ("a", c_void_p), ("b", c_void_p))


class LoraLayerStruct(Structure):
    """See LoraLayer in model.h."""

    _fields_ = tuple((name, LoraStruct) for name in ("q", "k", "v", "output", "gate", "up", "down"))


_SIZES = (
    *("layers", "hidden", "heads", "kv_heads", "head_size", "intermediate", "vocabulary"),
    *("slots", "positions", "bf16_cache", "gated", "activation", "parallel", "rotated", "pairs"),
)
_FACTORS = (
    *("attention_scale", "attention_cap", "logit_cap", "embedding_scale", "residual_scale", "logit_scale", "clip"),
)


class ModelStruct(Structure):
    """See Model in model.h."""

    _fields_ = (
        *((name, c_int32) for name in _SIZES),
        *((name, c_float) for name in _FACTORS),
        ("layer", POINTER(LayerStruct)),
        ("embedding", MatrixStruct),
        ("head", MatrixStruct),
        ("embedding_norm", NormStruct),
        ("norm", NormStruct),
        *((name, c_void_p) for name in ("learned", "slopes", "keys", "values")),
    )
