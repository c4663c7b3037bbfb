"""Exactness report: a model is loaded as it would be served, and compared with its files and with transformers."""

import asyncio
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from run_gpt.config import EngineConfig, ModelConfig
from run_gpt.engine.request import Request, SamplingParams
from run_gpt.engine.runners.base import end_ids_of
from run_gpt.local.launch import RunningModel, launch
from run_gpt.models import LoadedModel, OnProgress, fetch, load, no_progress
from run_gpt.models.check import Finding, compare_tokens, compared, keys_of
from run_gpt.models.checks import first_line
from run_gpt.models.convert import converted_record, is_converted
from run_gpt.models.estimate import estimate_folder
from run_gpt.models.files import ModelFiles
from run_gpt.models.gguf_weights import gguf_weights
from run_gpt.models.quiet import quiet_transformers
from run_gpt.models.sizes import size_text
from run_gpt.process.devices import free_bytes

PROMPT = "The capital of France is"
ANSWER_TOKENS = 16
"""Number of tokens that are compared, or fewer where the context is shorter."""
_DTYPES = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}


@dataclass(frozen=True)
class Report:
    """Report on one model."""

    name: str
    folder: str
    facts: list[Finding]
    """Context, ends, template, and precision of each kind of weights."""
    keys: dict[str, list[Finding]]
    """Keys of each file of metadata."""
    comparisons: list[Finding]
    """Tokens beside tokenizer.json's, and greedy tokens beside transformers' in fp32."""

    @property
    def differences(self) -> list[Finding]:
        """Findings that differ."""
        found = [*self.facts, *(one for keys in self.keys.values() for one in keys), *self.comparisons]
        return [one for one in found if one.verdict == "differs"]

    def as_json(self) -> str:
        """Return the report as JSON."""
        return json.dumps({**asdict(self), "exact": not self.differences}, ensure_ascii=False, indent=2)


def check_model(config: ModelConfig, *, on_progress: OnProgress = no_progress) -> Report:
    """Load a model as it would be served, and compare it with its files and with transformers.

    The served model is freed before transformers' is loaded. Raises SetupError or ModelNotFound.
    """
    files = fetch(config, on_progress=on_progress)
    running = launch(config, EngineConfig(), on_progress=on_progress)
    try:
        loaded, model = running.loaded, running.loaded.model
        prompt = _prompt(loaded)
        room = max(1, min(ANSWER_TOKENS, running.context_length - len(prompt)))
        served = asyncio.run(_greedy(running, prompt, room))
        end_ids = end_ids_of(model)
        facts = [_context(running), _ends(loaded, end_ids), _template(loaded), *_weights(files, loaded)]
        keys = keys_of(files.folder, model.config, loaded.tokenizer, end_ids)
        tokens = compare_tokens(files.folder, loaded.tokenizer)
        precision = loaded.precision
    finally:
        running.engine.shutdown()
        running.grammars.close()
    del running, loaded, model
    answer = _beside_transformers(config, files, (prompt, room), served, end_ids, on_progress)
    if answer.verdict == "differs" and precision != "fp32":
        answer = replace(answer, note=f"{answer.note}; {precision} rounds: --precision fp32 compares exactly")
    return Report(files.name, str(files.folder), facts, keys, [tokens, answer])


def _prompt(loaded: LoadedModel) -> list[int]:
    """Return the ids of the sample prompt, that fit a short context too."""
    ids: list[int] = loaded.tokenizer(PROMPT)["input_ids"]
    return ids[: max(1, loaded.context_length // 2)] or [0]


async def _greedy(running: RunningModel, prompt: Sequence[int], room: int) -> list[int]:
    """Return the greedy tokens of the served model, the one that ends the answer left out."""
    sampling = SamplingParams(logprobs=0)
    request = Request(id="check", prompt_ids=tuple(prompt), max_new_tokens=room, sampling=sampling, whole=True)
    events = [event async for event in running.engine.submit(request)]
    ends = end_ids_of(running.loaded.model)
    ids = [token.token_id for event in events for token in event.logprobs]
    return ids[:-1] if ids and ids[-1] in ends else ids


def _beside_transformers(
    config: ModelConfig,
    files: ModelFiles,
    asked: tuple[list[int], int],
    served: list[int],
    end_ids: tuple[int, ...],
    on_progress: OnProgress,
) -> Finding:
    """Compare greedy tokens with those of transformers' `generate` in fp32, on the CPU, where memory allows.

    `asked`: the prompt's ids, and the most tokens of the answer.
    """
    name, estimate, free = "greedy tokens", estimate_folder(files.folder), free_bytes("cpu")
    needed = estimate.weights("fp32") if estimate is not None else 0
    if needed > free:
        note = f"transformers needs {size_text(needed)} in fp32, and {size_text(free)} are free"
        return Finding(name, f"{len(served)} tokens", "not compared", note)
    on_progress("Loading transformers' model in fp32", 0, None)
    try:
        with quiet_transformers():
            expected = _generated(_reference(config, files), *asked, end_ids)
    except Exception as error:  # any error of a library: the report says so
        return Finding(name, f"{len(served)} tokens", "not compared", f"transformers: {first_line(error)}")
    return compared(name, served, expected, "transformers")


def _reference(config: ModelConfig, files: ModelFiles) -> Any:
    """Return transformers' model in fp32; of a GGUF file, with its weights as they are read from it."""
    from transformers import AutoModelForCausalLM

    if gguf_weights(files.folder) is not None:
        plain = replace(config, precision="fp32", device="cpu", device_map=None, max_memory=None, tensor_parallel=1)
        return load(replace(plain, adapters=None, adapter_name_or_path=None)).model
    return AutoModelForCausalLM.from_pretrained(
        files.folder,
        dtype=torch.float32,
        local_files_only=True,
        trust_remote_code=config.trust_remote_code,
        use_safetensors=None if config.allow_pickle else True,
    )


def _generated(model: Any, prompt: list[int], count: int, end_ids: tuple[int, ...]) -> list[int]:
    from transformers import GenerationConfig

    ids = torch.tensor([prompt])
    pad = end_ids[0] if end_ids else 0
    model.generation_config = GenerationConfig(eos_token_id=list(end_ids) or None, pad_token_id=pad)
    with torch.inference_mode():
        answer = (
            model.eval()
            .generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=count, do_sample=False)[0, len(prompt) :]
            .tolist()
        )
    return [token for token in answer if token not in end_ids]


def _context(running: RunningModel) -> Finding:
    """Return the context: what the model has, and what one request gets."""
    own, given = running.loaded.context_length, running.context_length
    return Finding("context", f"{given} tokens", "honoured", "" if own == given else f"of {own}: the memory's limit")


def _ends(loaded: LoadedModel, end_ids: tuple[int, ...]) -> Finding:
    """Return the tokens that end an answer; the files' own are generation_config's, config's and the tokenizer's."""
    own: set[int] = set()
    for ends in (
        loaded.model.generation_config.eos_token_id,
        getattr(loaded.model.config.get_text_config(), "eos_token_id", None),
        loaded.tokenizer.eos_token_id,
    ):
        own |= set(ends) if isinstance(ends, list | tuple) else set() if ends is None else {ends}
    shown = ", ".join(f"{end} {loaded.tokenizer.convert_ids_to_tokens(end)!r}" for end in end_ids)
    missing = sorted(own - set(end_ids))
    return Finding("ends", shown or "none", "differs" if missing else "honoured", f"not {missing}" if missing else "")


def _template(loaded: LoadedModel) -> Finding:
    if loaded.chat_template is None:
        return Finding("chat template", "the model's own", "honoured")
    return Finding("chat template", loaded.chat_template.name, "honoured", "the model has none")


def _weights(files: ModelFiles, loaded: LoadedModel) -> list[Finding]:
    """Return the precision of each kind of weights in memory, and of a GGUF file's own."""
    kinds: dict[str, Counter[str]] = {}
    for name, parameter in loaded.model.named_parameters():
        outer = any(part in name for part in ("embed", "lm_head", "wte", "wpe")) and ".layers." not in name
        kind = "norms and biases" if parameter.dim() < 2 else "embedding and output" if outer else "layers"
        if not parameter.is_meta:
            dtype = str(parameter.dtype).removeprefix("torch.")
            kinds.setdefault(kind, Counter())[_DTYPES.get(dtype, dtype)] += parameter.numel()
    facts = [Finding(f"weights: {kind}", _list(counts), "honoured") for kind, counts in kinds.items()]
    if loaded.packer is not None:
        facts.append(Finding("weights: packed", loaded.packer.precision, "honoured", "by the native kernels"))
    if is_converted(files.folder) and (own := converted_record(files.folder).get("precisions")):
        facts.append(Finding("weights: of the GGUF file", _list(Counter(own.values())), "honoured", "held as"))
    return facts


def _list(counts: Counter[str]) -> str:
    return ", ".join(name for name, _ in counts.most_common())
