"""Check of a model's class: only causal language models with a cache or a state are served; others are named."""

import re
from collections.abc import Mapping
from typing import Any

from run_gpt.errors import ModelLoadError
from run_gpt.models.files import ModelFiles

STATES = ("past_key_values", "cache_params", "state")
"""Names in transformers' models of the cache or state that goes from one step to the next."""
_CAUSAL = ("ForCausalLM", "LMHeadModel")
_TASK = re.compile(r"MODEL_FOR_(\w+)_MAPPING_NAMES")
_VECTORS = "sentence-transformers or Text Embeddings Inference"
_OTHERS = {
    "SEQ_TO_SEQ_CAUSAL_LM": ("an encoder-decoder model", None),
    "MASKED_LM": ("an encoder that fills in masked words", 'the pipeline "fill-mask" of transformers'),
    "SEQUENCE_CLASSIFICATION": ("a classifier or reward model", 'the pipeline "text-classification" of transformers'),
    "TEXT_ENCODING": ("an encoder", _VECTORS),
}
"""Tasks of transformers' classes, in the order in which they are asked: a description, and what serves such models."""
_DECODER_HALVES = ("trocr",)
"""Families of decoders for an encoder of another family."""
_NOT_IN_A_BATCH = ("cpmant", "git", "moshi", "moss_transcribe_diarize", "roformer")
"""Families whose class takes no positions and counts the padding: scripts/sweep_models.py found other tokens."""
_STATE_INSIDE = ("recurrent_gemma",)
"""Families whose class keeps the state of one text in its layers, and gives it to nobody."""
_SUFFIXES = (
    (re.compile(r"Reward|ForSequenceClassification|ForScore"), _OTHERS["SEQUENCE_CLASSIFICATION"]),
    (re.compile(r"ForMaskedLM$"), _OTHERS["MASKED_LM"]),
    (re.compile(r"ForPreTraining$"), ("a model with the heads of its pre-training", _VECTORS)),
    (re.compile(r"(Model|Encoder)$"), ("a model without an output layer, for embeddings", _VECTORS)),
)


def check_class(files: ModelFiles, config: Mapping[str, Any], *, trust_remote_code: bool) -> None:
    """Raise ModelLoadError for a model that is no causal language model with a cache or state.

    `config`: the content of config.json. A model of a type that transformers does not know is left to its loader.
    """
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    family = config.get("model_type")
    code = config.get("auto_map") or {}
    if trust_remote_code and "AutoModelForCausalLM" in code:
        return
    names = [name for name in config.get("architectures") or [] if isinstance(name, str)]
    known = family in CONFIG_MAPPING_NAMES
    if not known and code and not trust_remote_code:
        return  # the loader names --trust-remote-code
    causal = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(str(family))
    if names and not any(name == causal or name.endswith(_CAUSAL) or _has_text(name, causal) for name in names):
        raise _refused(files, names[0], *_described(names[0]))
    if known:
        _check_family(files, config, causal)
    _check_direction(files, config)


def _has_text(architecture: str, causal: str | None) -> bool:
    """Return True for a multimodal model whose text model transformers loads by itself. `causal`: its class."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

    return causal is not None and architecture in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES.values()


def _check_family(files: ModelFiles, config: Mapping[str, Any], causal: str | None) -> None:
    """Raise ModelLoadError for a family without a causal class, or whose class keeps nothing or is an encoder here."""
    import inspect

    import transformers

    defaults = transformers.CONFIG_MAPPING[config["model_type"]]
    # The decoders alone of such families count positions from the padding on, so they are not exact in a batch.
    half = getattr(defaults, "is_encoder_decoder", False) or config["model_type"] in _DECODER_HALVES
    if config.get("is_encoder_decoder") or half:
        raise _refused(files, config["model_type"], *_OTHERS["SEQ_TO_SEQ_CAUSAL_LM"])
    if causal is None:
        raise _refused(files, config["model_type"], "a model that does not write text token by token", None)
    if config["model_type"] in _NOT_IN_A_BATCH:
        raise _refused(files, causal, "a model whose positions begin at the padding of a batch", None)
    takes = inspect.signature(getattr(transformers, causal).forward).parameters
    if not any(name in takes for name in STATES) or config["model_type"] in _STATE_INSIDE:
        why = "a model of a kind that keeps no cache from token to token"
        raise _refused(files, causal, why, "`generate` of transformers")
    both = "encoder_hidden_states" in takes and hasattr(defaults, "is_decoder")
    if both and not config.get("is_decoder", defaults.is_decoder):
        raise _refused(files, f"{config['model_type']} without is_decoder", *_OTHERS["TEXT_ENCODING"])


def _check_direction(files: ModelFiles, config: Mapping[str, Any]) -> None:
    """Raise ModelLoadError for a model whose tokens see those behind them."""
    for part in (config, config.get("text_config") or {}):
        if part.get("is_causal") is False:
            raise _refused(files, "is_causal false", *_OTHERS["TEXT_ENCODING"])
        if part.get("use_bidirectional_attention") in (True, "all"):
            raise _refused(files, "use_bidirectional_attention", *_OTHERS["TEXT_ENCODING"])


def _described(architecture: str) -> tuple[str, str | None]:
    """Return what a class is, and what serves such models, if that is known; by transformers' tables of tasks."""
    from transformers.models.auto import modeling_auto

    tables = {match[1]: getattr(modeling_auto, name) for name in dir(modeling_auto) if (match := _TASK.fullmatch(name))}
    for task in (*_OTHERS, *tables):
        if any(architecture == name for name in tables[task].values() if _named(name, task)):
            words = task.lower().replace("_", " ")
            return _OTHERS.get(task, (f"a model for {words}", None))
    return next(
        (found for pattern, found in _SUFFIXES if pattern.search(architecture)), ("no causal language model", None)
    )


def _named(name: Any, task: str) -> bool:
    """Return True if a table's entry says what the class is for; tables of other tasks hold base classes as well."""
    return task != "PRETRAINING" and (not str(name).endswith("Model") or task == "SEQ_TO_SEQ_CAUSAL_LM")


def _refused(files: ModelFiles, name: str, description: str, instead: str | None) -> ModelLoadError:
    use = instead or "transformers itself"
    return ModelLoadError(
        f"{files.folder} is {description} ({name}, by its config.json), and only causal language models are served: "
        f"use {use}"
    )
