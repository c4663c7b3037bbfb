"""Without these tests perplexities could be of a wrong text, or a benchmark be lost because the network is down."""

import gzip
import json
import zipfile
from pathlib import Path

import httpx
import huggingface_hub
import pytest

from run_gpt.bench import offline_texts
from run_gpt.bench.offline import Options, gather_texts
from run_gpt.bench.offline_texts import c4_of, ptb_of, read_text, wikitext_of
from run_gpt.errors import SetupError

SAMPLE = Path(__file__).parents[2] / "data" / "alice.txt"


def test_wikitext_is_the_test_part_of_the_zip(tmp_path):
    file = tmp_path / "w.zip"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("wikitext-2-raw/wiki.train.raw", "train")
        archive.writestr("wikitext-2-raw/wiki.test.raw", " = Robert Boulter = \n é")
    assert wikitext_of(file) == " = Robert Boulter = \n é"


def test_c4_is_the_first_documents_joined_by_spaces(tmp_path):
    file = tmp_path / "c.json.gz"
    with gzip.open(file, "wt", encoding="utf-8") as lines:
        lines.writelines(json.dumps({"text": f"document {i}", "url": "x"}) + "\n" for i in range(1200))
    text = c4_of(file)
    assert text.startswith("document 0 document 1 ")
    assert text.endswith(" document 1099")


def test_ptb_is_its_sentences_joined_by_spaces(tmp_path):
    file = tmp_path / "p.txt"
    file.write_text(" no it was n't black monday \n but while the <unk> \n")
    assert ptb_of(file) == "no it was n't black monday but while the <unk>"


def test_of_html_the_paragraphs_are_taken(tmp_path):
    file = tmp_path / "a.html"
    file.write_text("<h1>head</h1><p>one\n two</p><pre>code</pre><p>three</p>")
    assert read_text(file).content == "one two\n\nthree"


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(SetupError, match="none"):
        read_text(tmp_path / "none.txt")


def test_texts_that_cannot_be_fetched_are_a_line_each_and_the_others_stay(tmp_path, monkeypatch):
    def no_network(*_, **__):
        raise httpx.ConnectError("Name or service not known")

    monkeypatch.setenv("RUNGPT_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", no_network)
    monkeypatch.setattr(httpx, "get", no_network)
    texts, notes = gather_texts(Options(texts=(SAMPLE,)), lambda _: None)
    assert [text.name for text in texts] == ["alice.txt"]
    assert [note.split(":")[0] for note in notes] == [f"No perplexity on {name}" for name in offline_texts.TEXTS]
    assert all("\n" not in note and "--text" in note for note in notes)


def test_another_text_at_the_address_of_ptb_is_refused(tmp_path, monkeypatch):
    answer = httpx.Response(200, text="not found", request=httpx.Request("GET", offline_texts.PTB_ADDRESS))
    monkeypatch.setenv("RUNGPT_CACHE", str(tmp_path))
    monkeypatch.setattr(httpx, "get", lambda *_, **__: answer)
    texts, notes = gather_texts(Options(data=("ptb",)), lambda _: None)
    assert texts == []
    assert "another text" in notes[0]
    assert not list(tmp_path.rglob("ptb*"))


def test_a_fetched_file_that_cannot_be_read_is_a_line(tmp_path, monkeypatch):
    broken = tmp_path / "broken"
    broken.write_bytes(b"half a file")
    monkeypatch.setattr(offline_texts, "_from_hub", lambda *_: broken)
    texts, notes = gather_texts(Options(data=("wikitext2", "c4")), lambda _: None)
    assert texts == []
    assert [note.count("cannot be read") for note in notes] == [1, 1]
