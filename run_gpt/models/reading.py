"""Reading of a model's weights from its files: whole, packed on the way, split over devices, or only a share."""

import logging
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from run_gpt.config import ModelConfig
from run_gpt.errors import ModelLoadError, RunGPTError
from run_gpt.models.cache import cache_root
from run_gpt.models.checks import damaged, first_line
from run_gpt.models.device_map import one_at_a_time
from run_gpt.models.files import ModelFiles
from run_gpt.models.gguf_weights import gguf_weights
from run_gpt.models.packing import Packer, PackingConfig
from run_gpt.models.placement import QUANTISED, Placement
from run_gpt.models.preflight import offload_folder, remove_with
from run_gpt.models.progress import OnProgress
from run_gpt.process.devices import is_split


def read_model(
    files: ModelFiles,
    config: ModelConfig,
    placement: Placement,
    model_config: Any,
    packer: Packer | None,
    on_progress: OnProgress,
) -> Any:
    """Return the transformers model; its weights are in `packer`, if there is one. Raises ModelLoadError."""
    options = _options(config, placement, packer, files.folder)
    offloaded = offload_folder(cache_root(config.cache_dir)) if placement.device_map is not None else None
    try:
        size = sum(file.stat().st_size for file in files.folder.iterdir() if file.is_file())
        with _reporting(f"Loading {files.name}", size, on_progress):
            model, report = _from_pretrained(files.folder, config, model_config, packer, options, offloaded)
    except Exception as error:
        shutil.rmtree(offloaded or "", ignore_errors=True)
        cause = getattr(options.get("quantization_config"), "error", None) or error
        if isinstance(cause, RunGPTError):
            raise cause from error
        raise load_error(files, f"model in {placement.precision} on {placement.device}", cause) from error
    if missing := sorted(report["missing_keys"]):
        raise damaged(files, files.folder, f"no weights for {missing[0]}, of {len(missing)} missing")
    for name, found, expected in report["mismatched_keys"]:
        why = f"{name} has the shape {list(found)}, and the configuration says {list(expected)}"
        raise damaged(files, files.folder, why)
    if packer is not None and packer.precision in QUANTISED:
        model.float()  # the few parameters that are not packed
    if offloaded is not None:
        remove_with(model, offloaded)
    if is_split(model):
        one_at_a_time(model)
    return model


def _options(config: ModelConfig, placement: Placement, packer: Packer | None, folder: Path) -> dict[str, Any]:
    """Return the options of `from_pretrained` for data types and placement."""
    options: dict[str, Any] = {"dtype": placement.dtype}
    if config.tensor_parallel > 1:
        from transformers.distributed import DistributedConfig

        options["distributed_config"] = DistributedConfig(tp_size=config.tensor_parallel)
    elif packer is not None:
        # The file's own type: a cast would copy each weight as a whole before it is packed.
        options = {"dtype": "auto", "quantization_config": PackingConfig(packer, folder)}
    elif placement.precision in QUANTISED:
        options |= {
            "quantization_config": _quantization(placement),
            "device_map": placement.device_map or {"": "cpu"},
        }
    elif placement.device_map is not None:
        options["device_map"] = placement.device_map
    if placement.max_memory is not None:
        options["max_memory"] = placement.max_memory
    return options


def _from_pretrained(
    folder: Path,
    config: ModelConfig,
    model_config: Any,
    packer: Packer | None,
    options: dict[str, Any],
    offloaded: Path | None,
) -> tuple[Any, dict[str, Any]]:
    """Return the model, and transformers' report of missing and mismatched weights."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoModelForCausalLM, GenerationConfig

    common = {
        "local_files_only": True,
        "output_loading_info": True,
        "ignore_mismatched_sizes": True,  # reported in an error of our own
        "offload_folder": offloaded,
    }
    weights: dict[str, Any] | None = gguf_weights(folder, packer.takes if packer else lambda name: False)
    if weights is None:
        answer: tuple[Any, dict[str, Any]] = AutoModelForCausalLM.from_pretrained(
            folder,
            use_safetensors=None if config.allow_pickle else True,
            trust_remote_code=config.trust_remote_code,
            **common,
            **options,
        )
        return answer
    if config.tensor_parallel > 1:  # shares are cut from whole tensors
        weights = {name: tensor[...] for name, tensor in weights.items()}
    if packer is not None:
        options = {**options, "dtype": torch.float32}
    model_class: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(model_config)]
    model, report = model_class.from_pretrained(None, config=model_config, state_dict=weights, **common, **options)
    model.generation_config = GenerationConfig.from_pretrained(folder, local_files_only=True)
    return model, report


@contextmanager
def _reporting(step: str, total: int, on_progress: OnProgress) -> Iterator[None]:
    """Report in the block how many of the weights are loaded, as a share of the bytes of all files."""
    from transformers.utils.logging import set_tqdm_hook

    def bar(factory: Callable[..., Any], args: tuple[Any, ...], options: dict[str, Any]) -> Any:
        return weights(args[0]) if options.get("desc") == "Loading weights" else factory(*args, **options)

    def weights(items: Any) -> Iterator[Any]:
        for count, item in enumerate(items):
            on_progress(step, total * count // len(items), total)
            yield item

    before = set_tqdm_hook(bar)
    try:
        yield
    finally:
        set_tqdm_hook(before)


def _quantization(placement: Placement) -> Any:
    from transformers import BitsAndBytesConfig

    if placement.precision == "bit8":
        # It logs a line for each product whose input is not fp16, and on a CPU the other layers are kept in fp32.
        logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=placement.dtype,
    )


def load_error(files: ModelFiles, what: str, error: Exception) -> ModelLoadError:
    """Return our error for a library's error about a model's files."""
    reason = first_line(error)
    if "trust_remote_code" in str(error):
        reason = "it comes with its own Python code, which runs only with trust_remote_code=True (--trust-remote-code)"
    elif "out of memory" in str(error).lower():
        reason += "; a smaller precision (bf16, bit8, bit4) or device_map='auto' needs less memory there"
    return ModelLoadError(f"cannot load the {what} from {files.folder}: {reason}")
