"""transformers' configuration of a GGUF file."""

from typing import Any

from run_gpt.errors import ModelLoadError
from run_gpt.models.gguf.architectures import Architecture, Values
from run_gpt.models.gguf.keys import architecture_of, check_keys
from run_gpt.models.gguf.parts import GgufModel
from run_gpt.models.gguf.rotary import rotary
from run_gpt.models.gguf.tokenizer import ORIGINAL, end_ids, special_id
from run_gpt.models.gguf.values import shortest

_EMBEDDING, _OUTPUT = "token_embd.weight", "output.weight"
_HEAD_COUNT_KV = "attention.head_count_kv"


def read_configuration(model: GgufModel) -> Any:
    """Return the configuration. Raises ModelLoadError for metadata that are missing, unknown or do not fit together."""
    from transformers import AutoConfig

    architecture = architecture_of(model)
    check_keys(model)
    values: Values = {"model_type": architecture.model_type, **architecture.fixed, **_fields(model, architecture)}
    values["vocab_size"] = _rows(model)
    values["tie_word_embeddings"] = _OUTPUT not in model.tensors
    if architecture.rotary:
        _set_positions(model, architecture, values)
    architecture.adjust(model, values)
    ends = end_ids(model)
    return AutoConfig.for_model(
        **values,
        bos_token_id=special_id(model, "bos_token_id"),
        eos_token_id=ends[0] if len(ends) == 1 else ends or None,
        pad_token_id=special_id(model, "padding_token_id"),
    )


def _fields(model: GgufModel, architecture: Architecture) -> Values:
    """Return the fields for the keys of the family. Raises ModelLoadError for a key that is missing."""
    found: Values = {}
    for key, name in architecture.fields.items():
        value = model.metadata.get(f"{model.architecture}.{key}")
        if value is None and key == _HEAD_COUNT_KV:
            value = model.metadata.get(f"{model.architecture}.attention.head_count")
        if value is None and key not in (*architecture.optional, "attention.key_length"):
            raise ModelLoadError(f"{model.path} does not say {model.architecture}.{key}: {ORIGINAL}")
        if isinstance(value, list):
            if len(set(value)) != 1:
                raise ModelLoadError(
                    f"{model.path} has another {model.architecture}.{key} for each layer, which RunGPT does not read "
                    f"from GGUF: {ORIGINAL}"
                )
            value = value[0]
        if value is not None:
            found[name] = shortest(value)
    return found


def _rows(model: GgufModel) -> int:
    """Return the number of tokens that the model has. Raises ModelLoadError if the file's numbers do not fit."""
    if _EMBEDDING not in model.tensors:
        raise ModelLoadError(f"{model.path} lacks the tensor {_EMBEDDING}: it is not a whole model; download it again")
    rows = model.tensors[_EMBEDDING].shape[0]
    said = model.metadata.get(f"{model.architecture}.vocab_size", rows)
    tokens = len(model.metadata.get("tokenizer.ggml.tokens", ()))
    if said != rows or tokens > rows:
        raise ModelLoadError(
            f"{model.path} has {rows} rows in {_EMBEDDING}, {tokens} tokens in its vocabulary and "
            f"{model.architecture}.vocab_size {said}, which do not fit together: {ORIGINAL}"
        )
    return rows


def _set_positions(model: GgufModel, architecture: Architecture, values: Values) -> None:
    """Set the size of heads and the rotary positions."""
    plain = values["hidden_size"] // values["num_attention_heads"]
    said = {key: model.metadata.get(f"{model.architecture}.attention.{key}") for key in ("key_length", "value_length")}
    turned = model.metadata.get(f"{model.architecture}.rope.dimension_count")
    # Old files say only how much of a head is rotated, which is all of it in most families.
    head = said["key_length"] or (plain if architecture.partial else turned or plain)
    turned = turned or head
    if said["value_length"] not in (None, head):
        raise ModelLoadError(
            f"{model.path} has {model.architecture}.attention.value_length = {said['value_length']} beside keys of "
            f"{head} numbers, which RunGPT does not read from GGUF: {ORIGINAL}"
        )
    if "attention.key_length" in architecture.fields or head != plain:
        values["head_dim"] = head
    if turned != head and not architecture.partial:
        raise ModelLoadError(
            f"{model.path} has {model.architecture}.rope.dimension_count = {turned} beside heads of {head} numbers, "
            f"which this family cannot have: {ORIGINAL}"
        )
    values["rope_parameters"] = rotary(model, turned)
    if architecture.partial:
        values["rope_parameters"]["partial_rotary_factor"] = turned / head
