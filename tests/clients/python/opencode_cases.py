"""OpenCode, without a terminal, with a provider of its configuration."""

import json
import os
from pathlib import Path

from cases import BASE_URL, KEY, MODEL, PARIS, case, program, run

CONFIGURATION = {
    "provider": {
        "here": {
            "npm": "@ai-sdk/openai-compatible",
            "options": {"baseURL": BASE_URL, "apiKey": KEY},
            "models": {MODEL: {"name": MODEL, "tool_call": True, "limit": {"context": 8192, "output": 60}}},
        }
    },
    "model": f"here/{MODEL}",
    "small_model": f"here/{MODEL}",
    "share": "disabled",
    "autoupdate": False,
    "agent": {"short": {"mode": "primary", "prompt": "Be short.", "tools": {"*": False, "read": True, "bash": True}}},
}


@case("run: a question")
def question() -> None:
    file = Path(os.environ["HOME"]) / "opencode.json"
    file.write_text(json.dumps(CONFIGURATION))
    answer = program(
        *("../opencode-linux-x64/bin/opencode", "run", "--agent", "short", "--format", "json", PARIS),
        OPENCODE_CONFIG=str(file),
        OPENCODE_DISABLE_MODELS_FETCH="1",
        OPENCODE_DISABLE_AUTOUPDATE="1",
    )
    events = [json.loads(line) for line in answer.splitlines() if line.startswith("{")]
    assert any(event["type"] == "text" for event in events), answer


run()
