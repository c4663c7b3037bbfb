"""The evaluation harness: a task of its own, answered over chats and over completions."""

import json
import os
from pathlib import Path

from cases import BASE_URL, MODEL, case, program, run

HOME = Path(os.environ["HOME"])
TASK = """
task: capitals
dataset_path: json
dataset_kwargs:
  data_files: {data}
test_split: train
output_type: generate_until
doc_to_text: "Question: What is the capital of {{{{country}}}}?\\nAnswer:"
doc_to_target: "{{{{capital}}}}"
generation_kwargs:
  until: ["\\n"]
  max_gen_toks: 8
  temperature: 0.0
metric_list:
  - metric: exact_match
    aggregation: mean
    higher_is_better: true
"""


def _run(kind: str, route: str, *options: str) -> None:
    data, tasks, output = HOME / "data.jsonl", HOME / "tasks", HOME / kind
    tasks.mkdir(exist_ok=True)
    data.write_text('{"country": "France", "capital": "Paris"}\n{"country": "Italy", "capital": "Rome"}\n')
    (tasks / "capitals.yaml").write_text(TASK.format(data=data))
    program(
        *(
            "lm_eval",
            "--model",
            kind,
            "--tasks",
            "capitals",
            "--include_path",
            str(tasks),
            "--output_path",
            str(output),
        ),
        *(
            "--model_args",
            f"base_url={BASE_URL}{route},model={MODEL},num_concurrent=2,max_retries=1,tokenizer_backend=None",
        ),
        *options,
        HF_HUB_OFFLINE="1",
        OPENAI_API_KEY="unused",
    )
    (report,) = output.rglob("results*.json")
    assert "capitals" in json.loads(report.read_text())["results"]


@case("local-chat-completions: a task")
def chats() -> None:
    _run("local-chat-completions", "/chat/completions", "--apply_chat_template")


@case("local-completions: a task")
def completions() -> None:
    _run("local-completions", "/completions")


run()
