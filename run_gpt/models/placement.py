"""Where a model goes and in which precision: the user's wish, and what this machine can do about it."""

import platform
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from run_gpt.config import DEVICE_MAPS, PRECISIONS, ModelConfig
from run_gpt.errors import ModelLoadError

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
QUANTISED = ("bit8", "bit4")


@dataclass(frozen=True)
class Placement:
    """The choice: the main device, the precision (never `auto`), and what `from_pretrained` is told."""

    device: torch.device
    precision: str
    dtype: torch.dtype
    device_map: dict[str, Any] | str | None
    """None: the whole model on the CPU, without accelerate."""
    max_memory: dict[int | str, int] | None = None
    notes: tuple[str, ...] = field(default=())


def choose_placement(config: ModelConfig) -> Placement:
    """What `config` asks for, as this machine can give it. Raises ModelLoadError where it cannot."""
    if config.precision not in PRECISIONS:
        raise ModelLoadError(f"precision {config.precision!r} is not one of {', '.join(PRECISIONS)}")
    device = _device(config.device)
    if device.type == "mps" and config.precision in QUANTISED:
        raise ModelLoadError(f"{config.precision} needs a CUDA GPU or the CPU: use --device cpu, or precision fp16")
    precision = _best_precision(device) if config.precision == "auto" else config.precision
    device_map, max_memory, notes = _device_map(config, device)
    return Placement(device, precision, _dtype(precision, device), device_map, max_memory, tuple(notes))


def has_native_bf16() -> bool:
    """Whether this CPU multiplies bf16 in hardware; without, bf16 is emulated and slower than fp32."""
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    if capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"):
        return True
    if platform.system() != "Linux":
        return False
    flags = Path("/proc/cpuinfo").read_text().split()
    return any(flag in flags for flag in ("avx512_bf16", "amx_bf16", "bf16"))  # the last is ARM's


def _dtype(precision: str, device: torch.device) -> torch.dtype:
    """Of the weights, or of what is not quantised: bitsandbytes multiplies 8 bits with fp16 on a GPU."""
    if precision == "bit8":
        return torch.float32 if device.type == "cpu" else torch.float16
    return torch.bfloat16 if precision == "bit4" else DTYPES[precision]


def _best_precision(device: torch.device) -> str:
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    return "bf16" if device.type == "cpu" and has_native_bf16() else "fp32"


def _device(wish: str | None) -> torch.device:
    if wish is None:
        return torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(wish)
    except RuntimeError as error:
        raise ModelLoadError(f"device {wish!r} is not one that torch knows: use cpu, cuda, cuda:1, ...") from error
    if device.type == "cuda":
        index = device.index or 0
        _require_gpus([index], f"device {wish!r}")
        return torch.device("cuda", index)
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise ModelLoadError("device 'mps' is not available here: use cpu")
    if device.type not in ("cpu", "mps"):
        raise ModelLoadError(f"device {wish!r} is not supported: use cpu, cuda or mps")
    return device


def _device_map(
    config: ModelConfig, device: torch.device
) -> tuple[dict[str, Any] | str | None, dict[int | str, int] | None, list[str]]:
    """accelerate's device map, its memory limits, and notes."""
    wish = config.device_map
    if isinstance(wish, list):
        _require_gpus(wish, f"device_map {wish}")
        return "balanced", _memory_of(wish), []
    if isinstance(wish, dict):
        gpus = {part for part in wish.values() if isinstance(part, int)}
        gpus |= {torch.device(part).index or 0 for part in wish.values() if str(part).startswith("cuda")}
        _require_gpus(sorted(gpus), "device_map")
        return wish, None, []
    if wish is not None and wish not in DEVICE_MAPS:
        raise ModelLoadError(
            f"device_map {wish!r} is not one of {', '.join(DEVICE_MAPS)}; a list of GPU numbers or a dict works too"
        )
    whole: dict[str, Any] | None = None if device.type == "cpu" else {"": str(device)}
    if wish in (None, "single"):
        return whole, None, []
    if device.type != "cuda":
        where = "the CPU" if device.type == "cpu" else str(device)
        why = "no GPU here" if not torch.cuda.is_available() else f"device is {device}"
        return whole, None, [f"{why}: device map {wish!r} means that the whole model is on {where}"]
    return wish, None, []


def _memory_of(gpus: Iterable[int]) -> dict[int | str, int]:
    from accelerate.utils import get_max_memory

    return {part: size for part, size in get_max_memory().items() if part in set(gpus) or part == "cpu"}


def _require_gpus(wanted: Iterable[int], what: str) -> None:
    have = torch.cuda.device_count()
    missing = [str(index) for index in wanted if not 0 <= index < have]
    if missing:
        there = f"GPUs 0 to {have - 1}" if have else "no GPU"
        raise ModelLoadError(
            f"{what}: this machine has no GPU {', '.join(missing)} (torch sees {there}); leave this setting out"
        )
