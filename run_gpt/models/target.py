"""Target of a load: the device and the precision, from the user's settings and the machine's abilities."""

import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from run_gpt.config import PRECISIONS, ModelConfig
from run_gpt.errors import ModelLoadError
from run_gpt.models.device_map import choose_device_map, require_gpus

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
QUANTISED = ("bit8", "bit4")


@dataclass(frozen=True)
class Target:
    """Main device, precision (never `auto`), and the options of `from_pretrained` that follow from them."""

    device: torch.device
    precision: str
    dtype: torch.dtype
    device_map: dict[str, Any] | str | None
    """Device map of accelerate; None: the whole model on the CPU, without accelerate."""
    max_memory: dict[int | str, int] | None = None
    notes: tuple[str, ...] = ()
    """Lines for the user about settings that could not be followed exactly."""


def choose_target(config: ModelConfig) -> Target:
    """Return the target of `config` on this machine. Raises ModelLoadError if the machine cannot provide it."""
    if config.precision not in PRECISIONS:
        raise ModelLoadError(f"precision {config.precision!r} is not one of {', '.join(PRECISIONS)}")
    device = _device(config.device)
    if device.type == "mps" and config.precision in QUANTISED:
        raise ModelLoadError(f"{config.precision} needs a CUDA GPU or the CPU: use --device cpu, or precision fp16")
    precision = _best_precision(device) if config.precision == "auto" else config.precision
    device_map, max_memory = choose_device_map(config, device)
    return Target(device, precision, _dtype(precision, device), device_map, max_memory)


def has_native_bf16() -> bool:
    """Return True if this CPU multiplies bf16 in hardware; otherwise bf16 is emulated and slower than fp32."""
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    if capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"):
        return True
    if platform.system() != "Linux":
        return False
    flags = Path("/proc/cpuinfo").read_text().split()
    return any(flag in flags for flag in ("avx512_bf16", "amx_bf16", "bf16"))  # the last is ARM's


def _dtype(precision: str, device: torch.device) -> torch.dtype:
    """Return the type of the weights, or of those not quantised: bitsandbytes multiplies 8 bits with fp16 on a GPU."""
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
        require_gpus([index], f"device {wish!r}")
        return torch.device("cuda", index)
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise ModelLoadError("device 'mps' is not available here: use cpu")
    if device.type not in ("cpu", "mps"):
        raise ModelLoadError(f"device {wish!r} is not supported: use cpu, cuda or mps")
    return device
