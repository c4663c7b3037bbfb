"""Loads a model and its tokenizer from a local folder, as the configuration asks. Importing this imports torch."""

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

_NO_LIMIT = 10**9  # a tokenizer that knows no limit says 10**30
_UNKNOWN_CONTEXT = 2048


@dataclass(frozen=True)
class LoadedModel:
    """A model that is ready to run, and what was chosen for it."""

    model: Any
    """A torch `PreTrainedModel` in eval mode."""
    tokenizer: Any
    name: str
    """What the server calls it."""
    context_length: int
    """Tokens of prompt and answer together that the model was trained for."""
    precision: str
    """One of config.PRECISIONS, never `auto`."""
    device: str
    """Where the inputs go, such as `cpu` or `cuda:0`."""
    notes: tuple[str, ...]
    """Lines for the user where a wish could not be taken literally."""
    packer: Packer | None = None
    """What holds the weights, if the model itself does not."""
    chat_template: ChatTemplate | None = None
    """Of a tokenizer without a template of its own; its stop texts are those that are no tokens."""


PackerFor = Callable[[Any, str, Mapping[str, str]], Packer | None]
"""From a transformers configuration, a precision, and the precisions of single parameters that a GGUF file has by name,
to what packs them so; None: nothing does."""


def load(
    config: ModelConfig,
    *,
    packer_for: PackerFor = lambda model_config, precision, own: None,
    on_progress: OnProgress = no_progress,
) -> LoadedModel:
    """Fetch the model if need be and load it.

    `packer_for` is asked for a model as a whole on the CPU. Raises ModelNotFound, DownloadError, ModelLoadError,
    ChecksumMismatch.
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
    if getattr(model_config, "quantization_config", None) is not None:  # by another tool, which has a format of its own
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
    """The configuration, without trust for the code of a checkpoint that transformers' own classes can run."""
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
    """See LoadedModel."""
    if tokenizer.chat_template:
        return None
    template = find_template(files.name, files.folder.name, model.config.model_type)
    return end_with_turns(model, tokenizer, template)


def _mark_state(model: Any) -> None:
    """Let a model say that it keeps a state: transformers marks most of those that do, but not LFM2 and its like."""
    from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

    plain = (DynamicLayer, DynamicSlidingWindowLayer)
    if any(type(layer) not in plain for layer in DynamicCache(config=model.config).layers):
        model._is_stateful = True


def _unusual(model: Any, template: ChatTemplate | None) -> list[str]:
    """Notes on what a user would not expect of a language model."""
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
