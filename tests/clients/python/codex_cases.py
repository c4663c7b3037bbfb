"""Codex CLI, without a terminal, with a provider of its configuration."""

import json
import os
from pathlib import Path

from cases import BASE_URL, KEY, MODEL, PARIS, case, program, run

CONFIGURATION = f"""
model = "{MODEL}"
model_provider = "rungpt"
model_instructions_file = "instructions.md"
[model_providers.rungpt]
name = "RunGPT"
base_url = "{BASE_URL}"
wire_api = "responses"
env_key = "RUNGPT_KEY"
request_max_retries = 0
stream_max_retries = 0
[analytics]
enabled = false
"""


@case("exec: a question")
def question() -> None:
    home = Path(os.environ["HOME"]) / "codex"
    home.mkdir()
    (home / "config.toml").write_text(CONFIGURATION)
    (home / "instructions.md").write_text("Be short.")
    options = ["--json", "--skip-git-repo-check", "--sandbox", "read-only"]
    lines = program("codex", "exec", *options, PARIS, CODEX_HOME=str(home), RUNGPT_KEY=KEY).splitlines()
    events = [json.loads(line) for line in lines if line.startswith("{")]
    assert any(event["type"] == "turn.completed" for event in events), events


run()
