"""Checkpoints that another tool has quantised: the kinds that are served; every other kind is refused by its name."""

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from run_gpt.errors import ModelLoadError

_FILES = {
    "hf_quant_config.json": "NVIDIA ModelOpt",
    "quantize_config.json": "AutoGPTQ",
    "quant_config.json": "AutoAWQ",
    "quanto_qmap.json": "quanto",
}
"""Files in which a tool writes its settings beside config.json, where transformers does not read them."""
_NAMES = {
    **{"fp8": "FP8", "mxfp4": "MXFP4", "bitsandbytes": "bitsandbytes", "gptq": "GPTQ", "awq": "AWQ", "hqq": "HQQ"},
    **{"compressed-tensors": "compressed-tensors", "torchao": "torchao", "quanto": "quanto", "aqlm": "AQLM"},
    **{"fbgemm_fp8": "FBGEMM FP8", "auto-round": "AutoRound", "quark": "Quark", "eetq": "EETQ", "vptq": "VPTQ"},
}
_DEQUANTISED = ("fp8", "mxfp4")
"""Kinds that transformers reads into plain weights on a CPU."""
_PACKAGES: Mapping[str, Mapping[str, str]] = {
    "bitsandbytes": {"bitsandbytes": "bitsandbytes"},
    "gptq": {"optimum": "optimum", "gptqmodel": "gptqmodel"},
    "awq": {"gptqmodel": "gptqmodel"},
    "compressed-tensors": {"compressed_tensors": "compressed-tensors"},
    "torchao": {"torchao": "torchao"},
    "hqq": {"hqq": "hqq"},
    "quanto": {"optimum.quanto": "optimum-quanto"},
    "aqlm": {"aqlm": "aqlm"},
    "auto-round": {"auto_round": "auto-round"},
    "quark": {"quark": "amd-quark"},
    "fbgemm_fp8": {"fbgemm_gpu": "fbgemm-gpu"},
    "eetq": {"eetq": "eetq"},
    "vptq": {"vptq": "vptq"},
}
"""Packages that transformers needs for a kind: the module's name, and the name for pip."""


@dataclass(frozen=True)
class Quantisation:
    """Kind of a quantised checkpoint."""

    method: str
    """Name of the kind in config.json, such as `fp8`."""
    bits: int | None
    """Bits of a weight; None: not known."""

    @property
    def text(self) -> str:
        """Name for users, such as `GPTQ in 4 bits`."""
        name = _NAMES.get(self.method, self.method)
        return name if self.bits is None or self.method in _DEQUANTISED else f"{name} in {self.bits} bits"

    @property
    def precision(self) -> str:
        """Precision of config.PRECISIONS that is nearest to the weights in the files."""
        return "bit8" if self.bits is None or self.bits > 4 else "bit4"

    @property
    def keeps(self) -> str | None:
        """Precision of the weights once they are loaded on a CPU; None: they become plain weights."""
        return None if self.method in _DEQUANTISED else self.precision


def quantisation_of(folder: Path, config: Mapping[str, Any]) -> Quantisation | None:
    """Return the kind in which the weights of a folder are quantised, or None for plain weights.

    `config`: the content of its config.json. Raises ModelLoadError for a kind that transformers does not read.
    """
    for part in (config, config.get("text_config") or {}):
        for key in ("quantization_config", "quantization", "compression_config"):
            if part.get(key):
                return _kind(folder, key, part[key])
    for name, tool in _FILES.items():
        if (folder / name).is_file():
            raise ModelLoadError(
                f"{folder} is quantised by {tool} ({name}), which config.json does not say and transformers does not "
                f"read: {_REMEDY}"
            )
    return None


def check_quantisation(found: Quantisation | None, precision: str, folder: Path) -> None:
    """Raise ModelLoadError if a checkpoint cannot be had in this precision (or `auto`), or needs a package."""
    if found is None:
        return
    wrong = precision in ("bit8", "bit4") and precision != found.keeps
    if wrong:
        raise ModelLoadError(
            f"{folder} is already quantised ({found.text}), and cannot be quantised to {precision} again: leave "
            f"--precision out{', or use bf16' if found.keeps is None else ''}; or serve the model that it was made of"
        )
    packages = _PACKAGES.get(found.method, {})
    missing = [package for module, package in packages.items() if not _is_installed(module)]
    if missing:
        raise ModelLoadError(
            f"{folder} is quantised ({found.text}), which needs {' and '.join(missing)}: pip install "
            f"{' '.join(missing)}, or {_REMEDY}"
        )


_REMEDY = "serve the model that it was made of, with --precision bit8 or bit4"


def _kind(folder: Path, key: str, settings: Any) -> Quantisation:
    if not isinstance(settings, Mapping):
        raise ModelLoadError(f"{folder}: {key} = {settings!r} in config.json says nothing of a quantisation: {_REMEDY}")
    if settings.get("load_in_8bit") or settings.get("load_in_4bit"):
        return Quantisation("bitsandbytes", 8 if settings.get("load_in_8bit") else 4)
    method, bits = settings.get("quant_method"), settings.get("bits")
    bits = bits if isinstance(bits, int) else None
    if method is None and "group_size" in settings and bits is not None:
        raise ModelLoadError(f"{folder} is an MLX checkpoint in {bits} bits, which only Apple's MLX reads: {_REMEDY}")
    if key != "quantization_config" or not isinstance(method, str) or method not in (*_DEQUANTISED, *_PACKAGES):
        raise ModelLoadError(
            f"{folder} is quantised in a way that is not served ({key} in config.json has the method {method!r}): "
            f"{_REMEDY}"
        )
    return Quantisation(method, {"fp8": 8, "mxfp4": 4}.get(method, bits))


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # the package that holds it
        return False
