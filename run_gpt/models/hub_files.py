"""Choice of the files of a hub repository that make a model, from the names of its files."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import PurePosixPath

from run_gpt.errors import ModelLoadError
from run_gpt.models.hub_names import HubName
from run_gpt.models.paths import is_gguf

_COMMON = ("*.json", "*.txt", "*.model", "*.jinja", "*.tiktoken", "*.py")  # code is fetched, but run only on request
_PICKLED = ("pytorch_model*.bin", "adapter_model.bin")
# These are second copies of the weights in other layouts.
_NOT_WANTED = ("consolidated*", "original/*", "onnx/*", "openvino/*", "runs/*")
# Files beside the weights that change answers. A copy that another program fetched may lack the rest.
_NEEDED = (
    *("config.json", "generation_config.json", "adapter_config.json", "tokenizer*", "special_tokens_map.json"),
    *("added_tokens.json", "vocab.*", "merges.txt", "*.model", "*.tiktoken", "tekken.json", "chat_template*"),
)
_CONFIGS = ("config.json", "adapter_config.json")
_SHARD = re.compile(r"(?P<base>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})(?P<suffix>\.\w+)")
_QUANTISATION = r"(?:UD-)?(?:I?Q\d+\w*|TQ\d\w*|BF16|F16|F32|FP16|FP32|MXFP\d\w*|NVFP\d\w*)"
_LABEL = re.compile(rf"(?:^|[-._])({_QUANTISATION})$", re.IGNORECASE)
_NO_MODEL = ("mmproj", "imatrix")
_DEFAULT = "Q4_K_M"


@dataclass(frozen=True)
class GgufModel:
    """Model in the GGUF format: one file, or its parts in their order."""

    label: str
    """Quantisation, such as `Q4_K_M`; else the file's name without its suffix."""
    files: tuple[str, ...]


def is_pickled(name: str) -> bool:
    """Return True if a file holds pickled weights."""
    return _matches(name, _PICKLED)


def is_needed(name: str) -> bool:
    """Return True if a file beside the weights changes answers."""
    return "/" not in name and _matches(name, _NEEDED)


def is_weights(name: str) -> bool:
    """Return True if a file holds weights, of any format."""
    return name.endswith(".safetensors") or is_gguf(name) or is_pickled(name)


def wanted(names: Iterable[str], name: HubName, *, allow_pickle: bool) -> list[str]:
    """Return the files of a repository to fetch: a GGUF file and its parts, or weights and what belongs to them.

    `names`: all files of the repository. Raises ModelLoadError if weights of an allowed kind are not among them.
    """
    kept = [file for file in names if not _matches(file, _NOT_WANTED)]
    weights = [file for file in kept if file.endswith(".safetensors")]
    pickled = [file for file in kept if is_pickled(file)]
    models = gguf_models(kept)
    if name.gguf or (models and not weights and not pickled):
        return list(_choose(models, name).files)
    if not weights and pickled and not allow_pickle:
        raise ModelLoadError(
            f"{name} has only pickled weights, which can run any code when loaded: if you trust it, set "
            "allow_pickle=True (--allow-pickle)"
        )
    if not weights and not pickled:
        raise ModelLoadError(f"{name} has neither safetensors nor GGUF files, so it is no model that RunGPT serves")
    return [file for file in kept if _matches(file, _COMMON)] + (weights or pickled)


def is_whole(names: Sequence[str], chosen: Sequence[str]) -> bool:
    """Return True if the `chosen` files have every part of their weights, and a configuration if they need one.

    `names`: all files here. It is for a copy whose complete list of files is not known.
    """
    weights = [file for file in chosen if is_weights(file)]
    shards = [match for file in weights if (match := _SHARD.fullmatch(file))]
    parts = {f"{m['base']}-{n:05}-of-{m['count']}{m['suffix']}" for m in shards for n in range(1, int(m["count"]) + 1)}
    has_config = any(file in names for file in _CONFIGS) or all(map(is_gguf, weights))
    return bool(weights) and has_config and parts <= set(names)


def gguf_models(names: Iterable[str]) -> list[GgufModel]:
    """Return the GGUF models among the files, by label. Raises ModelLoadError if a file's part is missing."""
    found: dict[str, list[str]] = {}
    for file in sorted(names):
        path = PurePosixPath(file)
        if is_gguf(file) and not any(word in path.name.lower() for word in _NO_MODEL):
            match = _SHARD.fullmatch(file)
            found.setdefault(match["base"] if match else file[: -len(".gguf")], []).append(file)
    labels = [_label(stem) for stem in found]
    return [
        GgufModel(label if labels.count(label) == 1 else stem, tuple(files))
        for (stem, files), label in zip(found.items(), labels, strict=True)
    ]


def _label(stem: str) -> str:
    """Return the quantisation that a file's name or its folder's has, else the name."""
    path = PurePosixPath(stem)
    match = _LABEL.search(path.name) or _LABEL.search(path.parent.name)
    return match[1].upper() if match else path.name


def _choose(models: Sequence[GgufModel], name: HubName) -> GgufModel:
    asked = (name.gguf or _DEFAULT).lower().removesuffix(".gguf")
    stems = [
        {model.label.lower(), *(_stems(file) if name.gguf else ())} for model in models for file in model.files[:1]
    ]
    fits = [model for model, known in zip(models, stems, strict=True) if asked in known]
    if not fits:  # unsloth's `UD-Q4_K_XL` is meant by `Q4_K_XL`
        fits = [model for model in models if model.label.lower() == f"ud-{asked}"]
    if not fits and not name.gguf and len(models) == 1:
        fits = list(models)
    if len(fits) == 1:
        return _complete(fits[0], name)
    if not models:
        raise ModelLoadError(f"{name.repo} has no GGUF file: leave :{name.gguf} out")
    labels = ", ".join(model.label for model in models)
    what = f"GGUF file {name.gguf!r}" if name.gguf else f"{_DEFAULT}, the default,"
    raise ModelLoadError(
        f"{name.repo} has no {what} but {labels}: name one of them, such as {name.repo}:{models[0].label}"
    )


def _stems(file: str) -> set[str]:
    """Return the names by which a user may mean a file: with its folder or without."""
    path = PurePosixPath(file)
    whole = {str(path.with_suffix("")).lower(), path.stem.lower()}
    match = _SHARD.fullmatch(file)
    return whole | ({match["base"].lower(), PurePosixPath(match["base"]).name.lower()} if match else set())


def _complete(model: GgufModel, name: HubName) -> GgufModel:
    match = _SHARD.fullmatch(model.files[0])
    if match and len(model.files) != int(match["count"]):
        raise ModelLoadError(f"{name} lacks parts: the repository has {len(model.files)} of {int(match['count'])}")
    return model


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch(name, pattern) for pattern in patterns)
