"""Sweep over the causal language models of transformers: a tiny random one of each is served and compared.

    python scripts/sweep_models.py                # prints the table of docs/support-matrix.md
    python scripts/sweep_models.py --write        # writes it there
    python scripts/sweep_models.py llama phi3     # only these families; with --write the others' lines stay

Each family has a process of its own and at most TIMEOUT seconds. It loads its checkpoint as `rungpt serve` does, and
runs PROMPTS together, greedy and in fp32. Their tokens must be those of `model.generate` for each prompt alone.
"""

import argparse
import asyncio
import multiprocessing
import sys
import tempfile
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from families import copied_tokenizer  # noqa: E402

from run_gpt.config import EngineConfig, ModelConfig  # noqa: E402
from run_gpt.engine.request import Request, SamplingParams  # noqa: E402
from run_gpt.engine.runners import llama  # noqa: E402
from run_gpt.engine.runners.native.build import unsupported  # noqa: E402
from run_gpt.errors import RunGPTError  # noqa: E402
from run_gpt.local.launch import launch  # noqa: E402

DOCUMENT = ROOT / "docs" / "support-matrix.md"
BEGIN, END = "<!-- sweep: made by scripts/sweep_models.py -->", "<!-- end of the sweep -->"
TIMEOUT = 40.0
"""Seconds for one family."""
PROMPTS = (3, 9, 17, 30, 24)
"""Numbers of tokens of the prompts that run together."""
NEW_TOKENS = 10
SCALE = 4.0
"""Factor for the initial matrices, so that answers vary."""
SIZES: dict[str, Any] = {
    **dict.fromkeys(("hidden_size", "n_embd", "d_model", "word_embed_proj_dim", "embedding_size"), 64),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "d_ff", "ffn_hidden_size", "decoder_ffn_dim", "n_inner"), 128),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size", "expert_ffn_hidden_size"), 32),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers"), 4),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads", "decoder_attention_heads"), 4),
    **dict.fromkeys(("num_key_value_heads", "num_kv_heads"), 2),
    **dict.fromkeys(("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "moe_topk", "moe_k", "moe_top_k"), 2),
    **dict.fromkeys(("n_group", "topk_group", "n_shared_experts", "first_k_dense_replace", "mamba_n_groups"), 1),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "n_ctx"), 1024),
    **dict.fromkeys(("kv_lora_rank", "qk_nope_head_dim", "v_head_dim", "head_dim", "mamba_d_head"), 16),
    **dict.fromkeys(("linear_key_head_dim", "linear_value_head_dim", "mamba_head_dim"), 16),
    **dict.fromkeys(("state_size", "mamba_d_state", "rotary_dim", "qk_rope_head_dim", "ssm_state_size"), 8),
    **dict.fromkeys(("linear_num_value_heads", "num_codebooks"), 4),
    **{"q_lora_rank": 32, "linear_num_key_heads": 2, "mamba_n_heads": 8, "mamba_num_heads": 8, "sliding_window": 8},
    **{"vocab_size": 320, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "is_decoder": True},
}
"""Values of the tiny configurations, for the fields that a family has."""
_EMPTY = ("pad_token_id", "bos_token_id", "eos_token_id", "is_decoder")
"""Fields that are set though their default is empty."""
OWN: dict[str, dict[str, Any]] = {
    "bamba": {"attn_layer_indices": [1]},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"] * 2},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
}
"""Further values of single families."""


@dataclass(frozen=True)
class Outcome:
    """Result for one family."""

    family: str
    architecture: str
    runner: str = ""
    result: str = "no answer in time"


def tiny(config_class: Any, family: str = "") -> Any:
    """Return a tiny configuration of this class."""
    fields = config_class().to_dict()
    values = {name: value for name, value in SIZES.items() if name in fields and (fields[name] or name in _EMPTY)}
    if "qk_rope_head_dim" in fields:  # latent attention, whose heads are not shared
        values |= {"head_dim": SIZES["qk_rope_head_dim"]} if "head_dim" in values else {}
        values |= {"num_key_value_heads": SIZES["num_attention_heads"]} if "num_key_value_heads" in values else {}
    for name, sub_class in (getattr(config_class, "sub_configs", None) or {}).items():
        if name in fields and hasattr(sub_class, "sub_configs"):
            values[name] = tiny(sub_class)
    return config_class(**{**values, **OWN.get(family, {})})


def build(family: str) -> Any:
    """Return a tiny model with random weights."""
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(tiny(transformers.CONFIG_MAPPING[family], family)).eval()
    embeddings = model.get_input_embeddings().weight
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2 and parameter is not embeddings:
                parameter.mul_(SCALE)
    return model


def compared(family: str, folder: Path) -> Outcome:
    """Write, serve and compare the model of a family."""
    architecture = str(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[family])
    try:
        model = build(family)
        model.save_pretrained(folder)
    except Exception as error:  # a configuration that these sizes do not suit
        return Outcome(family, architecture, "", f"not built: {type(error).__name__}: {_line(error)}")
    copied_tokenizer().save_pretrained(folder)
    native = unsupported() is None and llama.fits_config(model.config)
    try:
        running = launch(
            ModelConfig(model_name=str(folder), precision="fp32", device="cpu"),
            EngineConfig(max_running=3, max_step_tokens=16, runner="native" if native else "auto"),
        )
    except RunGPTError as error:
        return Outcome(family, architecture, "", f"refused: {_line(error).replace(str(folder), 'it')}")
    runner = type(running.engine._runner).__name__.removesuffix("Runner").lower()  # type: ignore[attr-defined]
    try:
        ours = asyncio.run(answers(running.engine))
    except RunGPTError as error:
        return Outcome(family, architecture, runner, f"fails: {_line(error)}")
    finally:
        running.engine.shutdown()
    same = ours == list(alone(folder))
    return Outcome(family, architecture, runner, "exact" if same else "differs")


def prompts() -> list[list[int]]:
    """Return the prompts, as token ids."""
    generator = torch.Generator().manual_seed(3)
    return [torch.randint(10, 300, (length,), generator=generator).tolist() for length in PROMPTS]


async def answers(engine: Any) -> list[list[int]]:
    """Return the engine's tokens for all prompts together."""

    async def one(name: str, prompt: list[int]) -> list[int]:
        sampling = SamplingParams(logprobs=0)
        request = Request(id=name, prompt_ids=tuple(prompt), max_new_tokens=NEW_TOKENS, sampling=sampling)
        return [token.token_id async for event in engine.submit(request) for token in event.logprobs]

    return await asyncio.gather(*(one(str(i), prompt) for i, prompt in enumerate(prompts())))


def alone(folder: Path) -> Iterator[list[int]]:
    """Yield the tokens of transformers' `generate` for each prompt alone, by a model of its own."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    for prompt in prompts():
        ids = torch.tensor([prompt])
        mask = torch.ones_like(ids)
        out = model.generate(ids, attention_mask=mask, do_sample=False, max_new_tokens=NEW_TOKENS, pad_token_id=0)
        yield out[0, len(prompt) :].tolist()


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:160]


def _child(family: str, results: Any) -> None:
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    with tempfile.TemporaryDirectory() as folder:
        try:
            results.put(compared(family, Path(folder) / "model"))
        except Exception as error:
            traceback.print_exc()
            results.put(Outcome(family, "", "", f"fails: {type(error).__name__}: {_line(error)}"))


def sweep(families: list[str]) -> Iterator[Outcome]:
    """Yield the outcome of each family, in turn."""
    context = multiprocessing.get_context("fork")
    for family in families:
        results = context.SimpleQueue()
        process = context.Process(target=_child, args=(family, results))
        process.start()
        process.join(TIMEOUT)
        process.kill()
        process.join()
        outcome = Outcome(family, str(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[family]))
        outcome = outcome if results.empty() else results.get()
        print(outcome, file=sys.stderr, flush=True)
        yield outcome


def line(outcome: Outcome) -> str:
    """Return a family's line of the table."""
    result = outcome.result.replace("|", "\\|")
    return f"| `{outcome.family}` | {outcome.architecture} | {outcome.runner} | {result} |"


def table(lines: list[str]) -> str:
    """Return the table in Markdown, with the counts before it."""
    kinds = [line.split(" | ")[3].removesuffix(" |").split(":")[0] for line in lines]
    counts = ", ".join(f"{kinds.count(kind)} {kind}" for kind in sorted(set(kinds), key=kinds.count, reverse=True))
    head = [f"transformers {transformers.__version__}, {len(lines)} families: {counts}.", ""]
    return "\n".join([*head, "| family | class | runner | result |", "|---|---|---|---|", *sorted(lines)])


def main() -> None:
    """Run the sweep and print or write its table."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("families", nargs="*", help="model types of transformers; default: all")
    parser.add_argument("--write", action="store_true", help=f"write the table into {DOCUMENT.name}")
    options = parser.parse_args()
    before, rest = DOCUMENT.read_text().split(BEGIN)
    old, after = rest.split(END)
    lines = {text.split("`")[1]: text for text in old.splitlines() if options.write and text.startswith("| `")}
    for outcome in sweep(options.families or sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)):
        lines[outcome.family] = line(outcome)
        if options.write:
            DOCUMENT.write_text(f"{before}{BEGIN}\n{table([*lines.values()])}\n{END}{after}")
    if not options.write:
        print(table([*lines.values()]))


if __name__ == "__main__":
    main()
