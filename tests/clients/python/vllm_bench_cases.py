"""vLLM's benchmark of a server, from an environment that is there already."""

import json
import os
from pathlib import Path

from cases import BASE_URL, MODEL, case, program, run

HOME = Path(os.environ["HOME"])
BENCHMARK = """
import argparse
from vllm.benchmarks.serve import add_cli_args, main
parser = argparse.ArgumentParser()
add_cli_args(parser)
main(parser.parse_args())
"""


def _run(backend: str, route: str) -> None:
    program(
        *("python", "-c", BENCHMARK, "--backend", backend, "--base-url", BASE_URL.removesuffix("/v1")),
        *("--endpoint", route, "--model", MODEL, "--tokenizer", os.environ["TOKENIZER"]),
        *("--dataset-name", "random", "--num-prompts", "2", "--random-input-len", "8", "--random-output-len", "4"),
        *("--ignore-eos", "--disable-tqdm", "--save-result", "--result-dir", str(HOME)),
        *("--result-filename", "result.json"),
        HF_HUB_OFFLINE="1",
        VLLM_NO_USAGE_STATS="1",
    )
    result = json.loads((HOME / "result.json").read_text())
    assert (result["completed"], result["total_output_tokens"]) == (2, 8), result


@case("bench serve: chats")
def chats() -> None:
    _run("openai-chat", "/v1/chat/completions")


@case("bench serve: completions")
def completions() -> None:
    _run("openai", "/v1/completions")


run()
