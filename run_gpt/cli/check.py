"""`rungpt models check`: the exactness report of a model."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from run_gpt.cli import options
from run_gpt.config import ModelConfig, options_of

if TYPE_CHECKING:
    from run_gpt.local.check import Report
    from run_gpt.models.check import Finding

Name = Annotated[str, typer.Argument(help=options_of(ModelConfig)["model_name"].help)]
AsJson = Annotated[bool, typer.Option("--json", help="Print the report as JSON.")]


@options.with_config(ModelConfig, "loading", leave_out=("served_model_name",))
def check(name: Name, as_json: AsJson = False, loading: dict[str, Any] | None = None) -> None:
    """Load a model as it would be served, and report what is exact; the exit code is 1 if something differs.

    The report has each key of its metadata, the tokens of a text beside tokenizer.json's, greedy tokens beside
    transformers' in fp32, the tokens that end an answer, the chat template, the context and the weights' precision.
    """
    from run_gpt.cli.progress import progress_bars
    from run_gpt.local.check import check_model

    with progress_bars() as on_progress:
        report = check_model(ModelConfig(model_name=name, **(loading or {})), on_progress=on_progress)
    print(report.as_json() if as_json else _text(report))
    raise typer.Exit(1 if report.differences else 0)


def _text(report: "Report") -> str:
    """Return the report as lines: facts and comparisons first, then the keys of each file."""
    lines = [f"{report.name}: {report.folder}", *_lines([*report.facts, *report.comparisons])]
    for file, findings in report.keys.items():
        lines += ["", file, *_lines(findings)]
    count = len(report.differences)
    return "\n".join([*lines, "", "nothing differs" if not count else f"{count} of these differ"])


def _lines(findings: "list[Finding]") -> list[str]:
    width = max((len(one.name) for one in findings), default=0)
    return [f"  {one.verdict:12}  {one.name:{width}}  {one.value}{_note(one.note)}" for one in findings]


def _note(note: str) -> str:
    return f"  ({note})" if note else ""
