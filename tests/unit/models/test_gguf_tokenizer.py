"""Tokenizers of GGUF files: prompts must have the tokens of the model's training, and answers must end."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from families import as_sentencepiece_files, write_checkpoint
from gguf_files import Metadata, llama, write_llama
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from run_gpt.config import ModelConfig
from run_gpt.errors import ModelLoadError
from run_gpt.models import load
from run_gpt.models.gguf.pre_tokenizers import SPLITTINGS

TEXT = """Hello World, don't DON'T we'LL 3 33 333 3333 33333  1  2   three\n\n\nTabs\t\tand  spaces   \n if x==1:
naïve Übergröße ПРИВЕТ мир 你好世界 こんにちは 안녕 नमस्ते ¿qué? $5.00 <=> ~|` 'single' (a_b)
camelCase HTTPServer return !!! e\u0301 … 。 """
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|"
    r"\s+(?!\S)|\s+"
)
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
V3 = (
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|"
    r"\s*[\r\n]+|\s+(?!\S)|\s+"
)
BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
GPT2 = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
DIGITS = pre_tokenizers.Digits(individual_digits=True)


def split(*patterns: str) -> list[Any]:
    return [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in patterns]


# The parts of each model's own tokenizer.json.
OWN: dict[str, Sequence[Any]] = {
    "gpt-2": [GPT2],
    "smollm": [DIGITS, GPT2],
    "starcoder": [DIGITS, GPT2],
    "refact": [DIGITS, GPT2],
    "command-r": [DIGITS, GPT2],
    "llama-bpe": [*split(LLAMA3), BYTES],
    "dbrx": [*split(LLAMA3), BYTES],
    "qwen2": [*split(QWEN2), BYTES],
    "stablelm2": [*split(QWEN2), BYTES],
    "deepseek-coder": [*split("[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-퟿]+"), DIGITS, BYTES],
    "deepseek-v3": [*split(r"\p{N}{1,3}", "[一-龥\u3040-\u309f\u30a0-\u30ff]+", V3), BYTES],
    "falcon": [pre_tokenizers.Punctuation("contiguous"), GPT2, *split("[0-9][0-9][0-9]")],
    "mpt": [GPT2],
}
COMPOSED = {"command-r", "qwen2", "stablelm2", "mpt"}


def trained(name: str) -> Tokenizer:
    """Return a tokenizer with these parts, trained on the text, so that its splitting shows in its tokens."""
    tokenizer = Tokenizer(models.BPE(ignore_merges=name == "llama-bpe"))
    tokenizer.normalizer = normalizers.NFC() if name in COMPOSED else None
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(list(OWN[name]))
    tokenizer.decoder = decoders.ByteLevel()
    # Trained without a splitting: merges over the borders of pieces show where they are.
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    whole = Tokenizer(models.BPE())
    whole.pre_tokenizer = BYTES
    trainer = trainers.BpeTrainer(vocab_size=700, initial_alphabet=alphabet)
    whole.train_from_iterator([TEXT[i : i + 9] for i in range(len(TEXT))] * 2, trainer)
    merges = [tuple(merge) for merge in json.loads(whole.to_str())["model"]["merges"]]
    tokenizer.model = models.BPE(whole.get_vocab(), merges, ignore_merges=name == "llama-bpe")
    return tokenizer


def metadata_of(tokenizer: Tokenizer, pre: str) -> Metadata:
    model = json.loads(tokenizer.to_str())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].get)
    return {
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [1] * len(tokens),
        "tokenizer.ggml.merges": [" ".join(merge) for merge in model["merges"]],
        "llama.vocab_size": len(tokens),
    }


def tokenizer_of(tmp_path: Path, rows: int, change: Metadata, drop: Sequence[str] = ()) -> Any:
    """Return the loaded model of a file with this tokenizer."""

    def apply(metadata: Metadata, tensors: Any) -> None:
        metadata.update(change)
        for key in drop:
            metadata.pop(key)

    path = write_llama(tmp_path / "a.gguf", llama(vocab_size=rows), change=apply)
    return load(ModelConfig(model_path=str(path), precision="fp32", device="cpu", cache_dir=tmp_path / "cache"))


@pytest.mark.parametrize("name", OWN)
def test_text_is_split_as_in_the_models_own_tokenizer(tmp_path: Path, name: str) -> None:
    theirs = trained(name)
    ours = tokenizer_of(tmp_path, theirs.get_vocab_size(), metadata_of(theirs, name)).tokenizer
    assert ours(TEXT, add_special_tokens=False)["input_ids"] == theirs.encode(TEXT).ids
    if name not in COMPOSED:
        assert ours.decode(ours(TEXT, add_special_tokens=False)["input_ids"]) == TEXT


@pytest.mark.parametrize("name", sorted(SPLITTINGS))
def test_every_known_splitting_loads(tmp_path: Path, name: str) -> None:
    ours = tokenizer_of(tmp_path, 300, {"tokenizer.ggml.pre": name}).tokenizer
    assert ours.decode(ours(TEXT, add_special_tokens=False)["input_ids"]) in (TEXT, TEXT.replace("e\u0301", "é"))


def test_a_prompt_begins_and_ends_as_the_file_says(tmp_path: Path) -> None:
    flags = {"tokenizer.ggml.add_bos_token": True, "tokenizer.ggml.add_eos_token": True}
    assert tokenizer_of(tmp_path, 300, flags).tokenizer("ab")["input_ids"] == [1, 3, 2]
    none = {"tokenizer.ggml.add_bos_token": False, "tokenizer.ggml.pre": "llama-bpe"}
    assert tokenizer_of(tmp_path, 300, none).tokenizer("ab")["input_ids"] == [3]
    assert tokenizer_of(tmp_path, 300, {"tokenizer.ggml.pre": "llama-bpe"}).tokenizer("ab")["input_ids"] == [1, 3]
    with pytest.raises(ModelLoadError, match=r"add_bos_token without tokenizer\.ggml\.bos_token_id"):
        tokenizer_of(tmp_path, 300, flags, drop=["tokenizer.ggml.bos_token_id"])


def test_all_ends_end_an_answer(tmp_path: Path) -> None:
    loaded = tokenizer_of(tmp_path, 300, {"tokenizer.ggml.eot_token_id": 5, "tokenizer.ggml.eom_token_id": 6})
    assert loaded.model.generation_config.eos_token_id == [2, 5, 6]
    assert loaded.tokenizer.eos_token_id == 2


def test_tokens_of_the_user_are_taken_whole(tmp_path: Path) -> None:
    ours = tokenizer_of(tmp_path, 300, {}).tokenizer
    assert ours("ab<extra1>ab</s>")["input_ids"] == [3, 261, 3, 2]
    assert ours.decode([3, 261, 2], skip_special_tokens=True) == "ab<extra1>"


def test_chat_templates_are_read_by_name(tmp_path: Path) -> None:
    templates = {"tokenizer.chat_template": "plain", "tokenizer.chat_template.tool_use": "tools"}
    ours = tokenizer_of(tmp_path, 300, templates).tokenizer
    assert ours.chat_template == {"default": "plain", "tool_use": "tools"}
    assert tokenizer_of(tmp_path, 300, {"tokenizer.chat_template": "plain "}).tokenizer.chat_template == "plain "


def pieces(folder: Path) -> tuple[Metadata, Any]:
    """Return a SentencePiece tokenizer as a file has it, and the library's own."""
    theirs = as_sentencepiece_files(write_checkpoint("llama", folder))
    count = theirs.get_piece_size()
    kinds = [
        2 if theirs.is_unknown(i) else 3 if theirs.is_control(i) else 6 if theirs.is_byte(i) else 1
        for i in range(count)
    ]
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.tokens": [theirs.id_to_piece(i) for i in range(count)],
        "tokenizer.ggml.scores": [theirs.get_score(i) for i in range(count)],
        "tokenizer.ggml.token_type": kinds,
        "tokenizer.ggml.unknown_token_id": theirs.unk_id(),
        "llama.vocab_size": count,
    }, theirs


def test_sentence_pieces_are_those_of_the_library(tmp_path: Path) -> None:
    metadata, theirs = pieces(tmp_path / "model")
    rows = metadata["llama.vocab_size"]
    ours = tokenizer_of(tmp_path, rows, metadata, drop=["tokenizer.ggml.merges"]).tokenizer
    for text in ("In a village", "  two spaces", "What  is\nthat? 0123", "日本 é", ""):
        assert ours(text)["input_ids"] == [1, *theirs.encode(text)]
    bare = {**metadata, "tokenizer.ggml.add_space_prefix": False, "tokenizer.ggml.add_bos_token": False}
    ours = tokenizer_of(tmp_path, rows, bare, drop=["tokenizer.ggml.merges"]).tokenizer
    assert ours.convert_ids_to_tokens(ours("In")["input_ids"])[0][0] == "I"
