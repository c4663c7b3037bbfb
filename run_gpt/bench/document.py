"""Puts what was measured into a document, between two marks: so what stands there is what a command has made."""

import re
from dataclasses import dataclass
from pathlib import Path

from run_gpt.errors import SetupError

END = "<!-- end -->"


@dataclass(frozen=True)
class Place:
    """Where it stands: after the line `begin`, up to the next line END."""

    begin: str

    def check(self, document: Path) -> None:
        """Raise SetupError if the document has no such place."""
        self._content(document)

    def write(self, document: Path, text: str) -> None:
        """Replace what stands there. Raises SetupError if the document has no such place."""
        made = f"{self.begin}\n{text}\n{END}"
        document.write_text(self._pattern.sub(lambda _: made, self._content(document)), encoding="utf-8")

    @property
    def _pattern(self) -> re.Pattern[str]:
        return re.compile(rf"{re.escape(self.begin)}\n.*?{re.escape(END)}", re.DOTALL)

    def _content(self, document: Path) -> str:
        try:
            content = document.read_text(encoding="utf-8")
        except OSError as error:
            raise SetupError(f"--write {document}: {error.strerror}") from error
        if not self._pattern.search(content):
            raise SetupError(f"--write {document}: it has no lines {self.begin} and {END}")
        return content


MODEL = Place("<!-- model: made by scripts/benchmark.py -->")
"""For the tables of `rungpt bench model`."""
SERVER = Place("<!-- server: made by rungpt bench serve -->")
"""For those of `rungpt bench serve`."""
SERVERS = Place("<!-- servers: made by scripts/server_benchmark.py -->")
"""For the comparison of servers."""
