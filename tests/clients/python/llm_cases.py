"""LLM (Simon Willison's): its command, with a model of `extra-openai-models.yaml`."""

import os
from pathlib import Path

from cases import BASE_URL, KEY, MODEL, PARIS, case, program, run

HOME = Path(os.environ["HOME"]) / "llm"
HOME.mkdir(exist_ok=True)
(HOME / "extra-openai-models.yaml").write_text(
    f"- model_id: here\n  model_name: {MODEL}\n  api_base: {BASE_URL}\n"
    "  supports_schema: true\n  supports_tools: true\n"
    f"- model_id: text\n  model_name: {MODEL}\n  api_base: {BASE_URL}\n  completion: true\n"
)
FEW = ("-o", "max_tokens", "40", "-o", "temperature", "0", "--key", KEY)


def llm(*arguments: str) -> str:
    """Run the command."""
    return program("llm", *arguments, LLM_USER_PATH=str(HOME))


@case("prompt: a stream, whole, and a conversation")
def prompt() -> None:
    assert "Paris" in llm("-m", "here", *FEW, "-s", "Be short.", PARIS)
    assert llm("-c", *FEW, "--no-stream", PARIS)


@case("prompt: a schema and a tool")
def forms() -> None:
    assert "{" in llm("-m", "here", *FEW, "--schema", "city str, year int", PARIS)
    assert llm("-m", "here", *FEW, "--no-stream", "-T", "llm_version", PARIS) is not None


@case("completions")
def completions() -> None:
    assert llm("-m", "text", "-o", "max_tokens", "4", "--key", KEY, "The capital of France is")


run()
