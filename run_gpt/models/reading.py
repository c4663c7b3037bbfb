"""Reading of a model's weights from its files: whole, packed on the way, split over devices, or only a share."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoModelForCausalLM, GenerationConfig, PreTrainedModel

from run_gpt.errors import RunGPTError
from run_gpt.models.cache import cache_root
from run_gpt.models.checks import check_report, check_unused, load_error
from run_gpt.models.gguf_weights import gguf_weights
from run_gpt.models.headers import stored_tensors
from run_gpt.models.offload import offload_folder, one_at_a_time, removal
from run_gpt.models.packing import Packer, PackingConfig
from run_gpt.models.placement import Placement
from run_gpt.models.progress import OnProgress
from run_gpt.models.target import QUANTISED, Target
from run_gpt.process.devices import is_split

CleanUp = Callable[[], object]
"""Function that frees a resource; a second call does nothing."""


def read_model(
    placement: Placement, model_config: Any, packer: Packer | None, on_progress: OnProgress
) -> tuple[Any, tuple[CleanUp, ...]]:
    """Return the transformers model, whose weights are in `packer`, if there is one; and its clean-ups.

    `model_config`: configuration of transformers. Raises ModelLoadError.
    """
    root = cache_root(placement.config.cache_dir)
    with nullcontext() if placement.target.device_map is None else offload_folder(root) as offloaded:
        model, report = _read(placement, model_config, packer, offloaded, on_progress)
        check_report(placement.files, report)
        check_unused(placement.files, report, model)
        if packer is not None and packer.precision in QUANTISED:
            model.float()  # the few parameters that are not packed
        if is_split(model):
            one_at_a_time(model)
        return model, () if offloaded is None else removal(model, offloaded)


def _read(
    placement: Placement, model_config: Any, packer: Packer | None, offloaded: Path | None, on_progress: OnProgress
) -> tuple[Any, dict[str, Any]]:
    """Return the model, and transformers' report of missing and mismatched weights."""
    files, target = placement.files, placement.target
    size = sum(file.stat().st_size for file in files.folder.iterdir() if file.is_file())
    options = _options(placement, packer)
    try:
        with _reporting(f"Loading {files.name}", size, on_progress):
            return _from_pretrained(placement, model_config, packer, {**options, "offload_folder": offloaded})
    except Exception as error:
        cause = getattr(options.get("quantization_config"), "error", None) or error
        if isinstance(cause, RunGPTError):
            raise cause from error
        raise load_error(files, f"model in {target.precision} on {target.device}", cause) from error


def _options(placement: Placement, packer: Packer | None) -> dict[str, Any]:
    """Return the options of `from_pretrained` for data types and devices."""
    target = placement.target
    options: dict[str, Any] = {"dtype": target.dtype}
    if placement.config.tensor_parallel > 1:
        from transformers.distributed import DistributedConfig

        options["distributed_config"] = DistributedConfig(tp_size=placement.config.tensor_parallel)
    elif packer is not None:
        # The file's own type: a cast would copy each weight as a whole before it is packed.
        options = {
            "dtype": _file_type(placement.files.folder),
            "quantization_config": PackingConfig(packer, placement.files.folder),
        }
    elif target.precision in QUANTISED and placement.quantisation is None:
        options |= {"quantization_config": _quantization(target), "device_map": target.device_map or {"": "cpu"}}
    elif target.device_map is not None:
        options["device_map"] = target.device_map
    if target.max_memory is not None:
        options["max_memory"] = target.max_memory
    return options


def _file_type(folder: Path) -> torch.dtype:
    """Return the type that holds each weight of the files exactly. config.json may name one with fewer bits."""
    held = {tensor.dtype for tensor in stored_tensors(folder).values()} & {"F64", "F32", "F16", "BF16"}
    if held == {"BF16"}:
        return torch.bfloat16
    return torch.float16 if held == {"F16"} else torch.float32


def _from_pretrained(
    placement: Placement, model_config: Any, packer: Packer | None, options: dict[str, Any]
) -> tuple[Any, dict[str, Any]]:
    """Call transformers' function of this name: for a folder with weights, or with the weights of a GGUF file."""
    folder = placement.files.folder
    common = {
        "local_files_only": True,
        "output_loading_info": True,
        "ignore_mismatched_sizes": True,  # reported in an error of our own
    }

    def unread(name: str, kind: str, large: bool) -> bool:
        if packer is None or not packer.takes(name):
            return False
        return large or packer.restored or packer.holds(name, kind)

    weights: dict[str, Any] | None = gguf_weights(folder, unread)
    if weights is None:
        answer: tuple[Any, dict[str, Any]] = AutoModelForCausalLM.from_pretrained(
            folder,
            use_safetensors=None if placement.config.allow_pickle else True,
            trust_remote_code=placement.trust_remote_code,
            **common,
            **options,
        )
        return answer
    if placement.config.tensor_parallel > 1:  # shares are cut from whole tensors
        weights = {name: tensor[...] for name, tensor in weights.items()}
    if packer is not None:
        options = {**options, "dtype": torch.float32}
    model_class: type[PreTrainedModel] = MODEL_FOR_CAUSAL_LM_MAPPING[type(model_config)]
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


def _quantization(target: Target) -> Any:
    from transformers import BitsAndBytesConfig

    if target.precision == "bit8":
        # It logs a line for each product whose input is not fp16, and on a CPU the other layers are kept in fp32.
        logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=target.dtype,
    )
