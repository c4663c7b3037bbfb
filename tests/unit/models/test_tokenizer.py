"""The ids of tokenizer.json must be served with any class: with other ids a model answers other questions."""

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from run_gpt.config import ModelConfig
from run_gpt.errors import InvalidRequest
from run_gpt.models import load
from run_gpt.models.files import ModelFiles
from run_gpt.models.tokenizer import encode, read_tokenizer

TEXT = "Hello  World 12345 don't\n\n naïve Ünïcode  <|x|>  the end</s> x"
SPECIAL = ["<s>", "</s>", "<unk>"]
CLASSES = (
    *("GPT2Tokenizer", "GPTNeoXTokenizer", "CodeGenTokenizer", "Qwen2Tokenizer", "CohereTokenizer", "LlamaTokenizer"),
    *("GemmaTokenizer", "T5Tokenizer", "BertTokenizer", "RagTokenizer", "GPT2TokenizerFast", "PreTrainedTokenizerFast"),
    *("PreTrainedTokenizer", "CTRLTokenizer", "NobodysTokenizer", None),
)


def byte_level() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        [TEXT, "123 12345 world world"] * 5,
        trainers.BpeTrainer(vocab_size=320, special_tokens=SPECIAL, initial_alphabet=alphabet),
    )
    tokenizer.add_tokens([AddedToken("<|x|>", normalized=False, lstrip=True)])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return tokenizer


def unigram() -> Tokenizer:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFD()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="never")
    tokenizer.train_from_iterator(
        [TEXT, "123 12345 world"] * 5,
        trainers.UnigramTrainer(vocab_size=80, special_tokens=SPECIAL, unk_token="<unk>"),
    )
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return tokenizer


def written(folder: Path, tokenizer: Tokenizer, **settings: Any) -> ModelFiles:
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
    return ModelFiles("m", folder)


@pytest.mark.parametrize("make", [byte_level, unigram])
def test_the_ids_and_texts_are_those_of_the_file(make: Any, tmp_path: Path) -> None:
    right = make()
    for name in CLASSES:
        files = written(tmp_path, right, tokenizer_class=name, eos_token="</s>", chat_template="x")
        tokenizer = read_tokenizer(files, trust_remote_code=False)
        for text in (TEXT, " a  b", "<|x|>", ""):
            ids = right.encode(text).ids
            assert tokenizer(text)["input_ids"] == ids, name
            assert tokenizer.decode(ids) == right.decode(ids, skip_special_tokens=False), name
        assert (tokenizer.eos_token, tokenizer.eos_token_id, tokenizer.chat_template) == ("</s>", 1, "x"), name


def test_a_special_token_that_only_the_class_knows_stays(tmp_path: Path) -> None:
    tokenizer = Tokenizer(models.BPE(vocab={"a": 0, "<|endoftext|>": 1, "</w>": 2}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.Digits()
    files = written(tmp_path, tokenizer, tokenizer_class="GPT2Tokenizer")
    read = read_tokenizer(files, trust_remote_code=False)
    assert (read.eos_token, read.eos_token_id, len(read)) == ("<|endoftext|>", 1, 3)


def test_a_text_that_the_tokenizer_refuses_is_the_requests_error() -> None:
    def refuse(text: str, **_: Any) -> Any:
        raise Exception("WordLevel error: Missing [UNK] token from the vocabulary")

    with pytest.raises(InvalidRequest, match="prompt: the tokenizer refuses it: WordLevel error") as caught:
        encode(refuse, "a", "prompt")
    assert caught.value.param == "prompt"


@pytest.mark.parametrize(
    ("settings", "config", "token", "ends"),
    [
        (5, 6, "</s>", [5, 6, 2]),
        ([5, 7], 5, "</s>", [5, 7, 2]),
        (None, None, "</s>", 2),
        (None, [7], None, 7),
        (None, None, None, None),
        (64, -1, None, None),
    ],
)
def test_an_answer_ends_at_each_end_that_a_file_names(
    tiny_model: Path, settings: Any, config: Any, token: str | None, ends: Any
) -> None:
    for name, value in (("generation_config.json", settings), ("config.json", config)):
        file = tiny_model / name
        file.write_text(json.dumps({**json.loads(file.read_text()), "eos_token_id": value}))
    file = tiny_model / "tokenizer_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "eos_token": token}))
    loaded = load(ModelConfig(model_name=str(tiny_model), precision="fp32", device="cpu"))
    assert loaded.model.generation_config.eos_token_id == ends
