"""GuideLLM: its benchmark of a server."""

import json
import os
from pathlib import Path

from cases import BASE_URL, MODEL, case, program, run

HOME = Path(os.environ["HOME"])
SERVER = BASE_URL.removesuffix("/v1")


def _run(route: str) -> None:
    data, report = HOME / "prompts.jsonl", HOME / "report.json"
    data.write_text(
        "".join(json.dumps({"prompt": f"Count to {count}.", "output_tokens": 5}) + "\n" for count in (1, 2))
    )
    program(
        *("guidellm", "run", "--disable-console", "--profile", "kind=synchronous"),
        *("--backend", f"kind=openai_http,target={SERVER},model={MODEL},request_format={route}"),
        *("--constraint", "kind=max_requests,count=2", "--data", f"kind=json_file,path={data}"),
        *("--output", f"kind=json,path={report}"),
        HF_HUB_OFFLINE="1",
    )
    made = json.loads(report.read_text())["benchmarks"][0]["scheduler_metrics"]["requests_made"]
    assert (made["successful"], made["errored"]) == (2, 0), made


@case("run: chats")
def chats() -> None:
    _run("/v1/chat/completions")


@case("run: completions")
def completions() -> None:
    _run("/v1/completions")


run()
