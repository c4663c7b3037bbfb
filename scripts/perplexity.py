"""Measure the perplexity of a text by a runner in steps of few tokens, and by transformers' own forward pass.

`rungpt bench model` measures whole prompts as they are served; this script is for changes to a runner's kernels.

Perplexity is exp of the mean negative log-likelihood of a token (natural logarithm, in fp32). The text is cut into
windows of 1,024 tokens that do not overlap; a window's first token is context only, so 1,023 of each count. Tokens
after the last whole window do not count. The differences are small, so the script refuses fewer than 50,000 tokens.

The script calls a runner as the engine does: in steps of --step tokens of --rows windows at a time. Runners use
different kernels for few and for many tokens, so measure both:

    python scripts/perplexity.py --text FILE --precision bf16 bit8                    prompts: 512 tokens a step
    python scripts/perplexity.py --text FILE --precision bf16 bit8 --step 1           one stream: a token a step
    python scripts/perplexity.py --text FILE --precision bf16 bit8 --step 1 --rows 16 16 streams

Use any text, and the same one for all runs that are compared. The figures in docs/engine.md are of "The Rust
Programming Language" (Klabnik, Nichols, Krycho and others; MIT or Apache-2.0), which comes with `rustup component add
rust-docs` as share/doc/rust/html/book/print.html. From HTML the script takes the paragraphs, without code blocks.

The table goes to stdout, progress to stderr.
"""

import argparse
import gc
import json
import math
import random
import sys
import time
from collections import abc
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, cast, get_args

import torch

from run_gpt.bench.offline_texts import read_text
from run_gpt.config import DEFAULT_MODEL, PRECISIONS, EngineConfig, ModelConfig, Runner
from run_gpt.engine.plan import ScheduledTokens, Sequence
from run_gpt.engine.request import Request
from run_gpt.engine.slots import Slot
from run_gpt.engine.text import TextStream
from run_gpt.local.create import load_model
from run_gpt.models import load

WINDOW = 1024
LEAST_TOKENS = 50_000
BASELINES = ("bf16", "fp32")
"""Precisions of transformers' own forward pass; the others are compared with the first one."""

Windows = list[list[int]]
Losses = Iterator[torch.Tensor]


def windows(tokenizer: Any, text: str, limit: int) -> Windows:
    """Return the text's tokens in windows, up to `limit` tokens. Raises SystemExit if there are too few."""
    ids = tokenizer(text)["input_ids"][:limit]
    if len(ids) < LEAST_TOKENS:
        raise SystemExit(f"the text has {len(ids)} tokens, {LEAST_TOKENS} are needed: give a longer one")
    return [ids[start : start + WINDOW] for start in range(0, len(ids) - WINDOW + 1, WINDOW)]


def losses(logits: torch.Tensor, targets: abc.Sequence[int]) -> torch.Tensor:
    """Return each target's negative log-likelihood. `logits`: [targets or more, vocabulary]; extra rows are ignored."""
    wanted = torch.tensor(targets, device=logits.device, dtype=torch.long)
    return torch.nn.functional.cross_entropy(logits[: len(wanted)].float(), wanted, reduction="none").cpu()


@torch.inference_mode()
def losses_of_model(model: Any, all_windows: Windows) -> Losses:
    """Yield the losses of the model's own forward pass, a window at a time."""
    for ids in all_windows:
        logits = model(input_ids=torch.tensor([ids], device=model.device), use_cache=False).logits[0]
        yield losses(logits, ids[1:])


def losses_of_runner(runner: Any, all_windows: Windows, step: int, rows: int) -> Losses:
    """Yield the runner's losses, called as the engine does: `rows` windows together, `step` tokens of each."""
    for first in range(0, len(all_windows), rows):
        group = [(row_of(ids, slot), ids) for slot, ids in enumerate(all_windows[first : first + rows])]
        for start in range(0, WINDOW, step):
            runs = []
            for row, ids in group:
                part = tuple(ids[start : start + step])
                runs.append(ScheduledTokens(row, start, part, num_logits=len(part)))
            logits = runner.forward(runs)
            parts = logits.split([run.num_logits for run in runs])
            for (_, ids), run, part in zip(group, runs, parts, strict=True):
                yield losses(part, ids[start + 1 : run.end + 1])
        runner.release(range(len(group)))


def row_of(ids: list[int], slot: int) -> Sequence:
    """Return the scheduler's row for a window that runs in this slot."""
    request = Request(id=str(slot), prompt_ids=tuple(ids), max_new_tokens=1)
    return Sequence(request, 0, TextStream(lambda _: "", (), ()), random.Random(0), place=Slot(slot))


@dataclass(frozen=True)
class Result:
    """One line of the table."""

    name: str
    tokens: int
    perplexity: float
    seconds: float

    def line(self, reference: "Result") -> str:
        """Return the result and its distance from the reference, as Markdown."""
        change = 100 * (self.perplexity / reference.perplexity - 1)
        return f"| {self.name} | {self.perplexity:.4f} | {change:+.2f} % |"


def measured(name: str, parts: Losses) -> Result:
    """Add up the losses."""
    start = time.perf_counter()
    total, count = 0.0, 0
    for part in parts:
        total, count = total + float(part.double().sum()), count + len(part)
    result = Result(name, count, math.exp(total / count), time.perf_counter() - start)
    print(f"{name}: {result.perplexity:.4f} in {result.seconds:.0f} s", file=sys.stderr, flush=True)
    return result


def of_transformers(options: argparse.Namespace, text: str, precision: str) -> Result:
    """Measure the perplexity by transformers' own forward pass."""
    loaded = load(ModelConfig(model_name=options.model, precision=precision))
    cut = windows(loaded.tokenizer, text, options.max_tokens)
    return measured(f"transformers, {loaded.precision}", losses_of_model(loaded.model, cut))


def of_runner(options: argparse.Namespace, text: str, precision: str, runner: Any) -> Result:
    """Measure the perplexity by a runner that is loaded and chosen as by `rungpt serve`."""
    config = EngineConfig(runner=runner, max_running=options.rows)
    with load_model(ModelConfig(model_name=options.model, precision=precision), config) as model:
        cut = windows(model.tokenizer, text, options.max_tokens)
        # The engine is idle, so nothing else calls its runner.
        parts = losses_of_runner(cast("Any", model._engine)._runner, cut, options.step, options.rows)
        return measured(f"RunGPT, {model.precision}, runner {runner}", parts)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("model", nargs="?", default=DEFAULT_MODEL, help="what `rungpt serve` takes; default: %(default)s")
    add("--text", type=Path, required=True, metavar="FILE", help="text (UTF-8) or HTML of at least 50,000 tokens")
    add("--precision", nargs="+", choices=PRECISIONS, default=["auto"], help="one or several; default: auto")
    add("--runner", nargs="+", choices=get_args(Runner), default=["auto"], help="one or several; default: auto")
    add("--step", type=int, default=EngineConfig.max_step_tokens, help="tokens of a row a step; default: %(default)s")
    add("--rows", type=int, default=1, help="windows side by side; default: %(default)s")
    add("--max-tokens", type=int, default=65_536, help="tokens of the text that are taken; default: %(default)s")
    add("--json", type=Path, metavar="FILE", help="write the figures there as well")
    options = parser.parse_args()
    text = read_text(options.text).content

    results = []
    for precision in BASELINES:
        results.append(of_transformers(options, text, precision))
        gc.collect()
    for precision, runner in product(options.precision, options.runner):
        results.append(of_runner(options, text, precision, runner))
        gc.collect()
    print(f"| | perplexity | against {results[0].name} |\n|---|---|---|")
    print("\n".join(result.line(results[0]) for result in results))
    print(
        f"\n{options.model} on {results[0].tokens} tokens of {options.text.name} in windows of {WINDOW}; runners with "
        f"{options.step} tokens of {options.rows} rows in a step."
    )
    if options.json is not None:
        figures = [{**vars(result)} for result in results]
        settings = {**vars(options), "text": options.text.name, "json": None}
        options.json.write_text(json.dumps({"settings": settings, "results": figures}, indent=2) + "\n")


if __name__ == "__main__":
    main()
