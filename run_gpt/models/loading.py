"""Loads a model and its tokenizer from a local folder, as the configuration asks. Importing this imports torch."""

import importlib.util
import logging
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from run_gpt.config import ModelConfig
from run_gpt.devices import input_device, is_split
from run_gpt.errors import ModelLoadError
from run_gpt.models.cache import cache_root
from run_gpt.models.convert import converted_record, is_converted
from run_gpt.models.device_map import one_at_a_time
from run_gpt.models.files import ModelFiles, adapter_folder, fetch
from run_gpt.models.placement import QUANTISED, Placement, choose_placement
from run_gpt.models.preflight import offload_folder, remove_with, settled
from run_gpt.models.progress import OnProgress, no_progress
from run_gpt.models.quiet import quiet_transformers

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
    pack: str | None = None
    """bit8 or bit4: the weights are plain, for the runner to pack into so many bits. None: they stay as they are."""


def load(
    config: ModelConfig,
    *,
    can_pack: Callable[[Any], bool] = lambda model_config: False,
    on_progress: OnProgress = no_progress,
) -> LoadedModel:
    """Fetch the model if need be and load it.

    `can_pack`: whether the runner to be packs 8- and 4-bit weights itself, for a transformers configuration. Then a
    GGUF file keeps its own precision in `auto`. Raises ModelNotFound, DownloadError, ModelLoadError, ChecksumMismatch.
    """
    placement = choose_placement(config)  # before a long download
    _require_adapters(config)
    files = fetch(config, on_progress=on_progress)
    on_progress(f"Loading {files.name}", 0, None)
    _check_weights(files, config)
    if config.tensor_parallel == 1:
        placement = settled(placement, config, files.folder)
    with quiet_transformers():
        pack = _pack(files, config, placement, can_pack)
        if pack is not None:
            placement = replace(placement, precision="fp32", dtype=torch.float32)
        elif placement.precision in QUANTISED:
            _require_bitsandbytes(placement)
        tokenizer = _tokenizer(files, config)
        model = _model(files, config, placement)
        if config.adapter_name_or_path is not None:
            model = _with_adapter(model, config, placement)
    model.eval().requires_grad_(False)
    context, notes = _context_length(model, tokenizer)
    return LoadedModel(
        model=model,
        tokenizer=tokenizer,
        name=files.name,
        context_length=context,
        precision=pack or placement.precision,
        device=str(input_device(model)),
        notes=(*placement.notes, *(() if pack else _slow_on_cpu(placement)), *notes),
        pack=pack,
    )


def _pack(files: ModelFiles, config: ModelConfig, placement: Placement, can_pack: Callable[[Any], bool]) -> str | None:
    """See LoadedModel."""
    wanted = placement.precision if placement.precision in QUANTISED else None
    if config.precision == "auto" and config.adapter_name_or_path is None:  # a merged adapter leaves the file's grid
        wanted = converted_record(files.folder)["precision"] if is_converted(files.folder) else None
    if wanted is None or placement.device.type != "cpu" or placement.device_map is not None:
        return None
    from transformers import AutoConfig

    try:
        model_config = AutoConfig.from_pretrained(
            files.folder, trust_remote_code=config.trust_remote_code, local_files_only=True
        )
    except Exception as error:
        raise _load_error(files, "configuration", error) from error
    return wanted if can_pack(model_config) else None


def _require_adapters(config: ModelConfig) -> None:
    if config.adapter_name_or_path is not None and importlib.util.find_spec("peft") is None:
        raise ModelLoadError("a LoRA adapter needs peft: pip install 'rungpt[adapters]'")


def _require_bitsandbytes(placement: Placement) -> None:
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ModelLoadError(f"{placement.precision} needs bitsandbytes: pip install bitsandbytes, or use fp16 or bf16")


def _slow_on_cpu(placement: Placement) -> list[str]:
    if placement.precision in QUANTISED and placement.device.type == "cpu":
        return [f"{placement.precision} of this model on a CPU saves memory, not time: fp32 or bf16 answer faster here"]
    return []


def _check_weights(files: ModelFiles, config: ModelConfig) -> None:
    """Raise ModelLoadError if the folder has no weights of an allowed kind, or a file that is not whole."""
    weights = sorted(files.folder.glob("*.safetensors"))
    pickled = sorted(files.folder.glob("*.bin"))
    if not weights and pickled and not config.allow_pickle:
        raise ModelLoadError(
            f"{files.folder} has only pickled weights ({pickled[0].name}), which can run any code when loaded: if you "
            "trust them, set allow_pickle=True (--allow-pickle)"
        )
    if not weights and not pickled:
        raise ModelLoadError(f"{files.folder} holds no weights: there is no .safetensors file")
    if is_converted(files.folder):
        for name, size in converted_record(files.folder)["sizes"].items():
            if not (files.folder / name).is_file() or (files.folder / name).stat().st_size != size:
                raise ModelLoadError(_damaged(files, files.folder / name, "it is cut short or gone"))
    for file in weights:
        _open_weights(files, file)


def _open_weights(files: ModelFiles, file: Path) -> None:
    """Read the header, which says how long the file must be."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="pt") as opened:
            opened.keys()
    except (SafetensorError, OSError) as error:
        raise ModelLoadError(_damaged(files, file, str(error).splitlines()[0])) from error


def _damaged(files: ModelFiles, file: Path, reason: str) -> str:
    return (
        f"cannot read {file} ({reason}): fetch it again; what the cache holds goes with `rungpt models rm {files.name}`"
    )


def _tokenizer(files: ModelFiles, config: ModelConfig) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(
            files.folder, trust_remote_code=config.trust_remote_code, local_files_only=True
        )
    except Exception as error:
        raise _load_error(files, "tokenizer", error) from error


def _model(files: ModelFiles, config: ModelConfig, placement: Placement) -> Any:
    from transformers import AutoModelForCausalLM

    options: dict[str, Any] = {}
    if placement.precision in QUANTISED:
        options["quantization_config"] = _quantization(placement)
        options["device_map"] = placement.device_map or {"": "cpu"}
    elif placement.device_map is not None:
        options["device_map"] = placement.device_map
    if placement.max_memory is not None:
        options["max_memory"] = placement.max_memory
    if config.tensor_parallel > 1:
        from transformers.distributed import DistributedConfig

        options = {"distributed_config": DistributedConfig(tp_size=config.tensor_parallel)}
    folder = None if "device_map" not in options else offload_folder(cache_root(config.cache_dir))
    try:
        model = AutoModelForCausalLM.from_pretrained(
            files.folder,
            dtype=placement.dtype,
            use_safetensors=None if config.allow_pickle else True,
            trust_remote_code=config.trust_remote_code,
            local_files_only=True,
            offload_folder=folder,
            **options,
        )
    except Exception as error:
        shutil.rmtree(folder or "", ignore_errors=True)
        raise _load_error(files, f"model in {placement.precision} on {placement.device}", error) from error
    if folder is not None:
        remove_with(model, folder)
    if is_split(model):
        one_at_a_time(model)
    return model


def _quantization(placement: Placement) -> Any:
    from transformers import BitsAndBytesConfig

    if placement.precision == "bit8":
        # It logs a line for each product whose input is not fp16: on a CPU the other layers are kept in fp32.
        logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=placement.dtype,
    )


def _with_adapter(model: Any, config: ModelConfig, placement: Placement) -> Any:
    """The model with the adapter merged into its weights; into quantised weights that would lose it, so not there."""
    from peft import PeftModel

    folder = adapter_folder(config)
    try:
        adapted = PeftModel.from_pretrained(model, folder)
        if placement.precision in QUANTISED:
            return adapted.get_base_model()  # with the adapter's layers beside the quantised ones
        return adapted.merge_and_unload()
    except Exception as error:
        raise ModelLoadError(f"the adapter in {folder} does not fit this model: {_first_line(error)}") from error


def _load_error(files: ModelFiles, what: str, error: Exception) -> ModelLoadError:
    reason = _first_line(error)
    if "trust_remote_code" in str(error):
        reason = "it comes with its own Python code, which runs only with trust_remote_code=True (--trust-remote-code)"
    elif "out of memory" in str(error).lower():
        reason += "; a smaller precision (bf16, bit8, bit4) or device_map='auto' needs less memory there"
    return ModelLoadError(f"cannot load the {what} from {files.folder}: {reason}")


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def _context_length(model: Any, tokenizer: Any) -> tuple[int, list[str]]:
    text_config = model.config.get_text_config()
    for name in ("max_position_embeddings", "n_positions", "max_seq_len", "max_sequence_length", "seq_length", "n_ctx"):
        length = getattr(text_config, name, None)
        if isinstance(length, int) and length > 0:
            return length, []
    if 0 < tokenizer.model_max_length < _NO_LIMIT:
        return int(tokenizer.model_max_length), []
    return _UNKNOWN_CONTEXT, [f"the model does not say how long its context is: {_UNKNOWN_CONTEXT} tokens are taken"]
