"""Report of a benchmark as a single, self-contained HTML file: tables, formulas and embedded plots."""

import base64
import json
from collections.abc import Sequence
from html import escape
from pathlib import Path

from run_gpt.bench import tables
from run_gpt.bench.plots import TITLES
from run_gpt.bench.results import Results
from run_gpt.bench.summary import FORMULAS
from run_gpt.errors import SetupError

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1150px; margin: 2em auto; padding: 0 1em }
body { color: #222; background: #fff }
table { border-collapse: collapse; margin: 1em 0; font-variant-numeric: tabular-nums }
th, td { padding: .25em .7em; border-bottom: 1px solid #ddd; text-align: right }
th:first-child, td:first-child { text-align: left }
div { overflow-x: auto } img { max-width: 100% } pre { background: #f5f5f5; padding: 1em; overflow-x: auto }
.warning { color: #a40000 }
"""


def write_html(results: Results, plots: dict[str, bytes], path: Path) -> None:
    """Write the report. Raises SetupError if the file cannot be written."""
    try:
        path.write_text(page(results, plots), encoding="utf-8")
    except OSError as error:
        raise SetupError(f"{path}: {error.strerror}") from None


def page(results: Results, plots: dict[str, bytes]) -> str:
    """Return the HTML of the report."""
    summaries = results.summaries
    parts = ["<h1>rungpt bench serve</h1>", f"<p>{escape(results.environment['date'])}</p>"]
    if results.saturation:
        parts.append(f"<p>Saturated at {results.saturation.level}: {escape(results.saturation.reason)}.</p>")
    parts += [f'<p class="warning">{escape(text)}</p>' for s in summaries for text in s.warnings()]
    parts += [_table(*table) for table in tables.all_of(summaries)]
    for name, png in plots.items():
        data = base64.b64encode(png).decode()
        title = TITLES.get(name, name)
        parts.append(f'<h2>{title}</h2><img alt="{title}" src="data:image/png;base64,{data}">')
    parts.append(f"<h2>Formulas</h2><pre>{escape(FORMULAS)}</pre>")
    about = {"environment": results.environment, "arguments": results.arguments, "limits, ms": results.limits}
    parts.append(f"<h2>Where and how</h2><pre>{escape(json.dumps(about, indent=1))}</pre>")
    head = f'<meta charset="utf-8"><title>rungpt bench serve</title><style>{_STYLE}</style>'
    body = "\n".join(parts)
    return f'<!doctype html>\n<html lang="en"><head>{head}</head><body>\n{body}\n</body></html>\n'


def _table(header: tables.Row, rows: Sequence[tables.Row]) -> str:
    def line(tag: str, cells: tables.Row) -> str:
        return f"<tr>{''.join(f'<{tag}>{escape(cell)}</{tag}>' for cell in cells)}</tr>"

    body = "\n".join(line("td", row) for row in rows)
    return f"<div><table>{line('th', header)}\n{body}</table></div>"
