"""Weights, the second phase of a load: from a placement to a model, its tokenizer and its adapters, ready to run.

Importing this imports torch.
"""

import importlib.util
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any

from run_gpt.config import DEFAULT_MODEL, ModelConfig
from run_gpt.errors import ModelLoadError
from run_gpt.models.adapter_base import AdapterBase
from run_gpt.models.adapter_config import read_adapter_config
from run_gpt.models.adapters import AdapterWeights, read_adapter
from run_gpt.models.chat_template import end_with_turns, unite_ends
from run_gpt.models.checks import check_rotary
from run_gpt.models.context import context_length
from run_gpt.models.convert import converted_record, is_converted
from run_gpt.models.files import adapter_folder, entry_of, is_called, served_name, startup_adapters
from run_gpt.models.metadata import read_config
from run_gpt.models.packing import Packer
from run_gpt.models.placement import Placement, place
from run_gpt.models.progress import OnProgress, no_progress
from run_gpt.models.quiet import quiet_transformers
from run_gpt.models.reading import CleanUp, read_model
from run_gpt.models.rendering import start_process
from run_gpt.models.sampling import Defaults, sampling_defaults
from run_gpt.models.target import QUANTISED, Target
from run_gpt.models.template_choice import choose_template, template_notes
from run_gpt.models.templates import PLAIN, ChatTemplate
from run_gpt.models.tokenizer import read_tokenizer
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
    sampling: Defaults = field(default_factory=dict)
    """Sampling defaults of requests."""
    chat_template: ChatTemplate | None = None
    """Chat template for a tokenizer without its own; its stop texts are only those that are not tokens."""
    stateful: bool = False
    """True if the model keeps a state instead of a key-value cache."""
    adapters: Mapping[str, AdapterWeights] = field(default_factory=dict)
    """LoRA adapters of the configuration, by name; see `read_adapter`."""
    adapter_base: AdapterBase | None = None
    """Model as adapters that are loaded later need it; None: they are not checked against it."""
    clean_ups: tuple[CleanUp, ...] = ()
    """Resources to free when the model is no longer used, in the order in which they were taken."""

    @property
    def vocabulary(self) -> int:
        """Number of token ids that the model takes: the rows of its embedding."""
        return _rows(self.model)

    def close(self) -> None:
        """Run the clean-ups, the last one first. A second call does nothing."""
        with ExitStack() as stack:
            for clean_up in self.clean_ups:
                stack.callback(clean_up)


PackerFor = Callable[[Any, str, Mapping[str, str]], Packer | None]
"""Function that returns a packer, or None if there is none for these arguments: a transformers configuration, a
precision, and the precisions of single parameters by name, as a GGUF file has them."""


def no_packer(model_config: Any, precision: str, own: Mapping[str, str]) -> None:
    """Return None: see PackerFor."""


def load(
    config: ModelConfig, *, packer_for: PackerFor = no_packer, on_progress: OnProgress = no_progress
) -> LoadedModel:
    """Fetch the model if needed, and load it: see `place` and `load_weights`, and the errors that they raise."""
    return load_weights(place(config, on_progress=on_progress), packer_for=packer_for, on_progress=on_progress)


def load_weights(
    placement: Placement, *, packer_for: PackerFor = no_packer, on_progress: OnProgress = no_progress
) -> LoadedModel:
    """Load the model, its tokenizer and its adapters.

    `packer_for` is called for a model that is as a whole on the CPU. Raises ModelLoadError.
    """
    files, trusted = placement.files, placement.trust_remote_code
    with quiet_transformers():
        model_config = read_config(files, placement.model_type, trust_remote_code=trusted)
        packer = _packer(placement, model_config, packer_for)
        target = placement.target if packer is None else replace(placement.target, precision=packer.precision)
        if placement.quantisation is None:
            _require_bitsandbytes(target, packer)
        tokenizer = read_tokenizer(files, trust_remote_code=trusted)
        template = choose_template(files, model_config.model_type, tokenizer, placement.config.chat_template)
        if tokenizer.chat_template:
            start_process()  # `template_notes` looks at the templates
        model, clean_ups = read_model(replace(placement, target=target), model_config, packer, on_progress)
    with ExitStack() as on_failure:
        for clean_up in clean_ups:
            on_failure.callback(clean_up)
        check_rotary(files, model)
        model.eval().requires_grad_(False)
        loaded = _described(placement, target, packer, model, tokenizer, template, on_progress)
        if packer is not None:
            packer.keep()
        on_failure.pop_all()
    return replace(loaded, clean_ups=clean_ups)


def _described(
    placement: Placement,
    target: Target,
    packer: Packer | None,
    model: Any,
    tokenizer: Any,
    template: ChatTemplate | None,
    on_progress: OnProgress,
) -> LoadedModel:
    """Return the model with its settings, ends and adapters, and a note on each choice that a user would not expect."""
    precision, kept = _held(placement, model, target.precision)
    context, unknown = _context_length(model, tokenizer)
    slow = [] if placement.quantisation else _slow_on_cpu(target, packer)
    template, stateful = _with_ends(model, tokenizer, template), _keeps_state(model)
    unusual = _unusual(model, tokenizer, template, stateful)
    base = AdapterBase.of(model, placement.files.folder)
    sampling, not_applied = _sampling(placement)
    adapters, made_for = _adapters(placement, base, on_progress)
    return LoadedModel(
        model=model,
        tokenizer=tokenizer,
        name=served_name(placement.config),
        context_length=context,
        precision=precision,
        device=str(input_device(model)),
        notes=(*placement.files.notes, *target.notes, *kept, *slow, *unknown, *unusual, *not_applied, *made_for),
        sampling=sampling,
        packer=packer,
        chat_template=template,
        stateful=stateful,
        adapters=adapters,
        adapter_base=base,
    )


def _sampling(placement: Placement) -> tuple[Defaults, list[str]]:
    """Return the sampling defaults of requests, and a note if a setting of the model is not applied."""
    config = placement.config
    if config.generation_config == "none":
        return {}, []
    entry = None if config.model_path is not None else entry_of(config.model_name or DEFAULT_MODEL)
    return sampling_defaults(placement.files.folder, entry)


def _packer(placement: Placement, model_config: Any, packer_for: PackerFor) -> Packer | None:
    target, folder = placement.target, placement.files.folder
    if target.device.type != "cpu" or target.device_map is not None:
        return None
    if getattr(model_config, "quantization_config", None) is not None:  # quantised by another tool, in its own format
        return None
    if placement.config.precision == "auto" and is_converted(folder):
        record = converted_record(folder)
        if record["precision"] is not None:
            packer = packer_for(model_config, record["precision"], record["precisions"])
            if packer is not None:
                return packer
    return packer_for(model_config, target.precision, {})


def _held(placement: Placement, model: Any, precision: str) -> tuple[str, list[str]]:
    """Return the precision in which most weights of a loaded model are, and a note if another one was wanted.

    `precision`: that of the target, which plain and packed weights have.
    """
    found, wanted = placement.quantisation, placement.config.precision
    if found is None:
        return precision, []
    matrices = [parameter for parameter in model.parameters() if parameter.dim() > 1]
    largest = max(matrices, key=lambda parameter: parameter.numel(), default=None)
    plain = found.keeps is None and largest is not None and largest.dtype.itemsize > 1
    held = precision if plain else found.precision
    if plain:
        return held, [f"the checkpoint's weights ({found.text}) are dequantised to {held}"]
    rest = f", and only the rest is {wanted}" if wanted not in ("auto", held) else ""
    return held, [f"the checkpoint's weights stay as they are ({found.text}){rest}"]


def _require_bitsandbytes(target: Target, packer: Packer | None) -> None:
    if packer is None and target.precision in QUANTISED and importlib.util.find_spec("bitsandbytes") is None:
        raise ModelLoadError(f"{target.precision} needs bitsandbytes: pip install bitsandbytes, or use fp16 or bf16")


def _slow_on_cpu(target: Target, packer: Packer | None) -> list[str]:
    if packer is None and target.precision in QUANTISED and target.device.type == "cpu":
        return [f"{target.precision} without our own kernels saves memory, not time: fp32 or bf16 answer faster here"]
    return []


def _adapters(
    placement: Placement, base: AdapterBase, on_progress: OnProgress
) -> tuple[dict[str, AdapterWeights], list[str]]:
    """Return the adapters of the configuration by name, and a note on each that was made for another model."""
    config, adapters, notes = placement.config, {}, []
    for name, path in startup_adapters(config).items():
        on_progress(f"Loading the adapter {name}", 0, None)
        folder = adapter_folder(path, config)
        adapters[name] = read_adapter(folder, base=base, allow_pickle=config.allow_pickle)
        made_for = read_adapter_config(folder).base
        if made_for is not None and not is_called(placement.files, made_for):
            notes.append(f"the adapter {name} was made for {made_for}, and this is {placement.files.name}")
    return adapters, notes


def _with_ends(model: Any, tokenizer: Any, template: ChatTemplate | None) -> ChatTemplate | None:
    """Set the model's ends, and return the template with those of its stop texts that are no tokens."""
    unite_ends(model, tokenizer, _rows(model))
    return None if template is None else end_with_turns(model, tokenizer, template)


def _rows(model: Any) -> int:
    rows = getattr(model.config.get_text_config(), "vocab_size", None)
    return int(rows or model.get_input_embeddings().weight.shape[0])


def _keeps_state(model: Any) -> bool:
    """Return True if the model keeps a state: transformers marks most of these, but not LFM2 and similar ones."""
    from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

    plain = (DynamicLayer, DynamicSlidingWindowLayer)
    marked = getattr(model, "_is_stateful", False)
    return marked or any(type(layer) not in plain for layer in DynamicCache(config=model.config).layers)


def _unusual(model: Any, tokenizer: Any, template: ChatTemplate | None, stateful: bool) -> list[str]:
    """Return notes on properties of the model that a user would not expect."""
    notes = template_notes(tokenizer)
    if template is not None and template.name == PLAIN.name:
        notes.append("this model has no chat template: chats are written as plain lines, `User: ...`, `Assistant: ...`")
    if stateful:
        notes.append(
            f"{model.config.model_type} keeps a state instead of a key-value cache: its requests run one after the "
            "other, without reuse of prefixes and without speculation"
        )
    return notes


def _context_length(model: Any, tokenizer: Any) -> tuple[int, list[str]]:
    config = model.config.get_text_config()
    own = {"max_position_embeddings": getattr(config, "max_position_embeddings", None)}  # by any name that means it
    if (length := context_length({**config.to_dict(), **own})) is not None:
        return length, []
    if 0 < tokenizer.model_max_length < _NO_LIMIT:
        return int(tokenizer.model_max_length), []
    return _UNKNOWN_CONTEXT, [f"the model does not say how long its context is: {_UNKNOWN_CONTEXT} tokens are taken"]
