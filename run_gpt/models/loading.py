"""Loading of a model and its tokenizer from a local folder, by the configuration. Importing this imports torch."""

import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from run_gpt.config import ModelConfig
from run_gpt.errors import ModelLoadError
from run_gpt.models.chat_template import end_with_turns
from run_gpt.models.checks import check_files, check_tokenizer
from run_gpt.models.convert import converted_record, is_converted
from run_gpt.models.files import ModelFiles, fetch
from run_gpt.models.packing import Packer
from run_gpt.models.placement import QUANTISED, Placement, choose_placement
from run_gpt.models.preflight import settled
from run_gpt.models.progress import OnProgress, no_progress
from run_gpt.models.quiet import quiet_transformers
from run_gpt.models.reading import load_error, read_model
from run_gpt.models.templates import PLAIN, ChatTemplate, find_template
from run_gpt.process.devices import input_device

_NO_LIMIT = 10**9  # a tokenizer without a limit has 10**30
_UNKNOWN_CONTEXT = 2048


@dataclass(frozen=True)
class LoadedModel:
    """Model that is ready to run, and the settings that were chosen for it."""

    model: Any
    """`PreTrainedModel` of torch, in eval mode."""
    tokenizer: Any
    name: str
    """Name of the model in the server."""
    context_length: int
    """Number of tokens, prompt and answer together, for which the model was trained."""
    precision: str
    """Precision of the weights: one of config.PRECISIONS, never `auto`."""
    device: str
    """Device of the inputs, such as `cpu` or `cuda:0`."""
    notes: tuple[str, ...]
    """Lines for the user about settings that could not be followed exactly."""
    packer: Packer | None = None
    """Packer that holds the weights, if the model itself does not."""
    chat_template: ChatTemplate | None = None
    """Chat template for a tokenizer without its own; its stop texts are only those that are not tokens."""


PackerFor = Callable[[Any, str, Mapping[str, str]], Packer | None]
"""Function that returns a packer, or None if there is none for these arguments: a transformers configuration, a
precision, and the precisions of single parameters by name, as a GGUF file has them."""


def load(
    config: ModelConfig,
    *,
    packer_for: PackerFor = lambda model_config, precision, own: None,
    on_progress: OnProgress = no_progress,
) -> LoadedModel:
    """Fetch the model if needed, and load it.

    `packer_for` is called for a model that is as a whole on the CPU. Raises ModelNotFound, DownloadError,
    ModelLoadError, ChecksumMismatch.
    """
    placement = choose_placement(config)  # before a long download
    files = fetch(config, on_progress=on_progress)
    on_progress(f"Loading {files.name}", 0, None)
    model_type = check_files(files, allow_pickle=config.allow_pickle).get("model_type")
    if config.tensor_parallel == 1:
        placement = settled(placement, config, files.folder)
    with quiet_transformers():
        config = _without_needless_code(model_type, config)
        model_config = _model_config(files, config)
        packer = _packer(files, config, placement, model_config, packer_for)
        if packer is not None:
            placement = replace(placement, precision=packer.precision)
        elif placement.precision in QUANTISED:
            _require_bitsandbytes(placement)
        tokenizer = _tokenizer(files, config)
        model = read_model(files, config, placement, model_config, packer, on_progress)
    model.eval().requires_grad_(False)
    _mark_state(model)
    context, notes = _context_length(model, tokenizer)
    template = _chat_template(files, model, tokenizer)
    return LoadedModel(
        model=model,
        tokenizer=tokenizer,
        name=files.name,
        context_length=context,
        precision=placement.precision,
        device=str(input_device(model)),
        notes=(*placement.notes, *(() if packer else _slow_on_cpu(placement)), *notes, *_unusual(model, template)),
        packer=packer,
        chat_template=template,
    )


def _packer(
    files: ModelFiles, config: ModelConfig, placement: Placement, model_config: Any, packer_for: PackerFor
) -> Packer | None:
    if placement.device.type != "cpu" or placement.device_map is not None:
        return None
    if getattr(model_config, "quantization_config", None) is not None:  # quantised by another tool, in its own format
        return None
    if config.precision == "auto" and is_converted(files.folder):
        record = converted_record(files.folder)
        if record["precision"] is not None:
            packer = packer_for(model_config, record["precision"], record["precisions"])
            if packer is not None:
                return packer
    return packer_for(model_config, placement.precision, {})


def _model_config(files: ModelFiles, config: ModelConfig) -> Any:
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(
            files.folder, trust_remote_code=config.trust_remote_code, local_files_only=True
        )
    except Exception as error:
        raise load_error(files, "configuration", error) from error


def _without_needless_code(model_type: str | None, config: ModelConfig) -> ModelConfig:
    """Return the configuration, without trust in a checkpoint's code if transformers' own classes can run the model."""
    if model_type != "moss":
        return config
    from run_gpt.models import moss

    moss.register()
    return replace(config, trust_remote_code=False)


def _require_bitsandbytes(placement: Placement) -> None:
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ModelLoadError(f"{placement.precision} needs bitsandbytes: pip install bitsandbytes, or use fp16 or bf16")


def _slow_on_cpu(placement: Placement) -> list[str]:
    if placement.precision in QUANTISED and placement.device.type == "cpu":
        return [
            f"{placement.precision} without our own kernels saves memory, not time: fp32 or bf16 answer faster here"
        ]
    return []


def _tokenizer(files: ModelFiles, config: ModelConfig) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(
            files.folder, trust_remote_code=config.trust_remote_code, local_files_only=True
        )
    except Exception as error:
        if "trust_remote_code" not in str(error):
            check_tokenizer(files)
        raise load_error(files, "tokenizer", error) from error


def _chat_template(files: ModelFiles, model: Any, tokenizer: Any) -> ChatTemplate | None:
    """Return the chat template: see LoadedModel."""
    if tokenizer.chat_template:
        return None
    template = find_template(files.name, files.folder.name, model.config.model_type)
    return end_with_turns(model, tokenizer, template)


def _mark_state(model: Any) -> None:
    """Mark a model that keeps a state: transformers marks most of these models, but not LFM2 and similar ones."""
    from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

    plain = (DynamicLayer, DynamicSlidingWindowLayer)
    if any(type(layer) not in plain for layer in DynamicCache(config=model.config).layers):
        model._is_stateful = True


def _unusual(model: Any, template: ChatTemplate | None) -> list[str]:
    """Return notes on properties of the model that a user would not expect."""
    notes = []
    if template is not None and template.name == PLAIN.name:
        notes.append("this model has no chat template: chats are written as plain lines, `User: ...`, `Assistant: ...`")
    if getattr(model, "_is_stateful", False):
        notes.append(
            f"{model.config.model_type} keeps a state instead of a key-value cache: its requests run one after the "
            "other, without reuse of prefixes and without speculation"
        )
    return notes


def _context_length(model: Any, tokenizer: Any) -> tuple[int, list[str]]:
    text_config = model.config.get_text_config()
    for name in ("max_position_embeddings", "n_positions", "max_seq_len", "max_sequence_length", "seq_length", "n_ctx"):
        length = getattr(text_config, name, None)
        if isinstance(length, int) and length > 0:
            return length, []
    if 0 < tokenizer.model_max_length < _NO_LIMIT:
        return int(tokenizer.model_max_length), []
    return _UNKNOWN_CONTEXT, [f"the model does not say how long its context is: {_UNKNOWN_CONTEXT} tokens are taken"]
