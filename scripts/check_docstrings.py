"""Check that docstrings open with a verb or a noun, and use plain words.

    python scripts/check_docstrings.py            # prints the faults; the exit status is 1 from 1 % on
    python scripts/check_docstrings.py run_gpt/engine tests/unit/engine

CONTRIBUTING.md states the rule. Docstrings of attributes count as well.
"""

import ast
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("run_gpt", "executors", "flows", "scripts", "studies", "tests", "examples")
OPENERS = {
    *("what", "whatever", "of", "whether", "how", "where", "those", "who", "whoever", "whom", "which", "whose", "why"),
    *("when", "that"),
}
WORDS = re.compile(
    r"\b(whoever|whomever|whatever|of which|of whom|is told|are told|was told|were told)\b", re.IGNORECASE
)
LIMIT = 0.01
"""Share of all docstrings from which on the check fails."""


def docstrings(path: Path) -> Iterator[tuple[int, str]]:
    """Yield line and text of each docstring of a file."""
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        body = getattr(node, "body", None)
        for statement in body if isinstance(body, list) else []:
            match statement:
                case ast.Expr(value=ast.Constant(value=str(text))):
                    yield statement.lineno, text


def fault(text: str) -> str | None:
    """Return the fault of a docstring; None: it has none."""
    first = re.match(r"\W*(\w+)", text)
    if first is not None and first[1].lower() in OPENERS:
        return f"opens with {first[1]!r}: begin with a verb or a noun"
    found = WORDS.search(text)
    return None if found is None else f"says {found[0]!r}: use plain words"


def main(arguments: Sequence[str]) -> int:
    """Check the files below the named folders, or all of them, and return the exit status."""
    total, faults = 0, []
    for folder in arguments or FOLDERS:
        start = ROOT / folder
        for path in [start] if start.is_file() else sorted(start.rglob("*.py")):
            for line, text in docstrings(path):
                total += 1
                if (wrong := fault(text)) is not None:
                    faults.append(f"{path.relative_to(ROOT)}:{line}: {wrong}")
    print("\n".join([*faults, f"{len(faults)} of {total} docstrings ({100 * len(faults) / max(total, 1):.1f} %)"]))
    return int(len(faults) >= LIMIT * total)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
