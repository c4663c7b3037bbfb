"""Measures what each precision costs and gives: speed, memory and perplexity, with ratios to bf16.

Speed is decoding alone (64 new tokens after prompts of 10) and a prompt of 512 tokens; every contender has a process
of its own and they take turns in each round: a figure is the median of the rounds, a ratio the median of each round's.
Memory is what the process grew by, from where all modules and the tokenizer are loaded: at its peak while it loads the
model, and at its peak in all, with the cache of 16 streams. (A plain file that is mapped is in memory once it is used.)
Perplexity is that of scripts/perplexity.py, of a text of at least 50,000 tokens.

    python scripts/precision_benchmark.py --text FILE                  the default model
    python scripts/precision_benchmark.py --random llama-3.2-1b        random weights of this shape, written for it
    python scripts/precision_benchmark.py --precision bf16 bit4 --repeat 1

The table goes to stdout, progress to stderr. Quote it of a quiet machine only.
"""

import argparse
import gc
import json
import shutil
import statistics
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import perplexity
from benchmark_contenders import Contender
from benchmark_process import Process
from engine_benchmark import surroundings

from run_gpt.config import DEFAULT_MODEL, PRECISIONS, EngineConfig, ModelConfig

REFERENCE = "bf16"
NEW_TOKENS = 64
SHAPES: dict[str, dict[str, Any]] = {
    "llama-3.2-1b": {
        "vocab_size": 128_256,
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 64,
        "max_position_embeddings": 8192,
        "tie_word_embeddings": True,
    },
}
SPEEDS = {
    "1 stream, tokens/s": ("streams", {"streams": 1, "new_tokens": NEW_TOKENS, "same": False}, "decode"),
    "16 streams, tokens/s": ("streams", {"streams": 16, "new_tokens": NEW_TOKENS, "same": False}, "decode"),
    "prefill of 512, tokens/s": ("prefill", {"tokens": 512}, "prefill"),
}


def say(text: str) -> None:
    """One line for the person who waits."""
    print(text, file=sys.stderr, flush=True)


@contextmanager
def random_model(shape: str) -> Iterator[str]:
    """A folder with random weights in bf16 of this shape, in files as the hub has them, with the default tokenizer."""
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig

    from run_gpt.models import fetch

    folder = Path(tempfile.mkdtemp(prefix=f"{shape}-"))
    try:
        say(f"writing random weights of the shape of {shape}")
        config = LlamaConfig(**SHAPES[shape], bos_token_id=1, eos_token_id=2, dtype="bfloat16")
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(config).bfloat16().save_pretrained(folder, max_shard_size="600MB")
        for file in fetch(ModelConfig(model_name=DEFAULT_MODEL)).folder.glob("*token*"):
            shutil.copy(file, folder)
        gc.collect()
        yield str(folder)
    finally:
        shutil.rmtree(folder)


def measure_speed(processes: list[Process], repeat: int) -> dict[str, dict[str, list[float]]]:
    """By label and contender, the figures of the rounds."""
    figures: dict[str, dict[str, list[float]]] = {}
    numbers = count(step=16)
    for label, (method, arguments, key) in SPEEDS.items():
        say(label)
        for i in range(repeat + 1):  # the first one warms up
            number = next(numbers)
            for process in processes:
                result = process.call(method, number=number, **arguments)[key]
                if i:
                    figures.setdefault(label, {}).setdefault(process.name, []).append(result)
    return figures


def measure_perplexity(model: str, text: Path, precisions: list[str], baseline: str) -> dict[str, list[float]]:
    """By contender."""
    options = argparse.Namespace(model=model, max_tokens=51_200, step=512, rows=1)
    read = perplexity.read_text(text)
    results = {baseline: [perplexity.of_transformers(options, read, REFERENCE).perplexity]}
    for precision in precisions:
        results[f"RunGPT, {precision}"] = [perplexity.of_runner(options, read, precision, "auto").perplexity]
        gc.collect()
    return results


def ratio(values: list[float], reference: list[float]) -> float:
    """The median of the rounds' ratios."""
    return statistics.median(a / b for a, b in zip(values, reference, strict=True))


def table(names: list[str], figures: dict[str, dict[str, list[float]]]) -> str:
    """A line for each contender; in brackets how many times RunGPT's figure in bf16 that is."""
    lines = ["| | " + " | ".join(figures) + " |", "|---" * (len(figures) + 1) + "|"]
    reference = f"RunGPT, {REFERENCE}"
    for name in names:
        cells = []
        for label, rounds in figures.items():
            if name not in rounds:
                cells.append("")
                continue
            median = statistics.median(rounds[name])
            text = f"{median:.4f}" if label == "perplexity" else f"{median:,.{0 if median >= 100 else 1}f}"
            digits = 4 if label == "perplexity" else 2
            compared = reference in rounds and name != reference
            cells.append(text + (f" ({ratio(rounds[name], rounds[reference]):.{digits}f} x)" if compared else ""))
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("model", nargs="?", default=DEFAULT_MODEL, help="what `rungpt serve` takes; default: %(default)s")
    add("--random", choices=SHAPES, help="random weights of this shape instead of MODEL")
    default = [precision for precision in PRECISIONS if precision != "auto"]
    add("--precision", nargs="+", choices=default, default=default, help="one or several; default: all")
    add("--text", type=Path, metavar="FILE", help="measure perplexity on this text as well")
    add("--repeat", type=int, default=3, help="rounds that count; default: %(default)s")
    add("--json", type=Path, metavar="FILE", help="write every round's figures there as well")
    options = parser.parse_args()
    if options.random and options.text:
        parser.error("--text: random weights have no perplexity worth the name")
    with ExitStack() as stack:
        model = stack.enter_context(random_model(options.random)) if options.random else options.model
        wanted: list[tuple[str, str | None]] = [(REFERENCE, None), *((p, "auto") for p in options.precision)]
        processes = []
        for precision, runner in wanted:
            say(f"loading {options.random or model} in {precision}" + ("" if runner else " for `generate`"))
            process = Process(Contender(model, precision, runner, EngineConfig.max_running))
            stack.callback(process.close)
            processes.append(process)
        names = [process.name for process in processes]
        figures = measure_speed(processes, options.repeat)
        memory = {process.name: process.call("memory") for process in processes}
        disturbed = max(process.disturbed for process in processes)
        figures["memory at most while loading, MB"] = {name: [value["loading"]] for name, value in memory.items()}
        figures["and in all, MB"] = {name: [value["grown"]] for name, value in memory.items()}
    if options.text:
        figures["perplexity"] = measure_perplexity(model, options.text, options.precision, names[0])
    about = {**surroundings(None), "cores_used_by_others": round(disturbed, 2)}
    print(table(names, figures))
    versions = ", ".join(f"{name} {number}" for name, number in about["versions"].items())
    what = f"random weights of the shape of {options.random}" if options.random else options.model
    print(
        f"\n{about['date']}, {what} on {about['cpu']}, {about['cores']} cores; {versions}. Medians of {options.repeat} "
        f"rounds, all in turn; (n x): n times RunGPT in {REFERENCE}; other programs used at most {disturbed:.1f} cores."
    )
    if options.json is not None:
        options.json.write_text(json.dumps({**about, "figures": figures}, indent=2) + "\n")


if __name__ == "__main__":
    main()
