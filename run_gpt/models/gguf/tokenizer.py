"""Tokenizer of a GGUF file: the one that the model was trained with, made of the file's metadata."""

from typing import Any

from run_gpt.errors import ModelLoadError
from run_gpt.models.gguf.parts import GgufModel
from run_gpt.models.gguf.pre_tokenizers import SPLITTINGS, Splitting, pre_tokenizer

ORIGINAL = "serve the model's original repository instead, in safetensors"
"""Advice for a file that cannot be honoured."""

_KEY = "tokenizer.ggml"
_TEMPLATE = "tokenizer.chat_template"
_NORMAL, _CONTROL, _USER_DEFINED = 1, 3, 4
_SPACE = "\u2581"
# SentencePiece's ids, for files that do not say them.
_PIECE_IDS = {"bos_token_id": 1, "eos_token_id": 2, "unknown_token_id": 0}
_NAMES = {
    "bos_token": "bos_token_id",
    "eos_token": "eos_token_id",
    "unk_token": "unknown_token_id",
    "pad_token": "padding_token_id",
}
_FURTHER_ENDS = ("eot_token_id", "eom_token_id")


def read_tokens(model: GgufModel) -> Any:
    """Return transformers' tokenizer. Raises ModelLoadError for a kind of tokenizer that is not known exactly."""
    from transformers import PreTrainedTokenizerFast

    kind, tokens = _value(model, "model"), _tokens(model)
    if kind == "gpt2":
        splitting = _splitting(model)
        backend, begins = _byte_level(model, tokens, splitting), splitting.begins
    elif kind == "llama":
        if (pre := _value(model, "pre", "default")) != "default":
            raise ModelLoadError(f"{model.path} has {_KEY}.pre = {pre!r} beside {_KEY}.model = 'llama': {ORIGINAL}")
        backend, begins = _sentence_pieces(model, tokens), True
    else:
        raise ModelLoadError(
            f"{model.path} has a tokenizer of the kind {kind!r} ({_KEY}.model), and RunGPT reads gpt2 and llama: "
            f"{ORIGINAL}"
        )
    _add_special(model, backend, tokens)
    names = {name: tokens[id_] for name, key in _NAMES.items() if (id_ := special_id(model, key)) is not None}
    _surround(model, backend, begins)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, clean_up_tokenization_spaces=False, chat_template=_chat_template(model), **names
    )


def special_id(model: GgufModel, key: str) -> int | None:
    """Return the id of a special token, such as `eos_token_id`, or None. Raises ModelLoadError if no token has it."""
    default = _PIECE_IDS.get(key) if _value(model, "model") == "llama" else None
    number = _value(model, key, default)
    count = len(_value(model, "tokens", []))
    if number is None or (number == default and number >= count):
        return None
    if not 0 <= number < count:
        raise ModelLoadError(
            f"{model.path}: {_KEY}.{key} is {number}, and the vocabulary has {count} tokens: {ORIGINAL}"
        )
    return int(number)


def end_ids(model: GgufModel) -> list[int]:
    """Return the ids that end an answer: of the text, of a turn and of a message."""
    found = [special_id(model, key) for key in ("eos_token_id", *_FURTHER_ENDS)]
    return list(dict.fromkeys(id_ for id_ in found if id_ is not None))


def _value(model: GgufModel, key: str, default: Any = None) -> Any:
    return model.metadata.get(f"{_KEY}.{key}", default)


def _tokens(model: GgufModel) -> list[str]:
    tokens = _value(model, "tokens")
    if not tokens:
        raise ModelLoadError(f"{model.path} has no vocabulary ({_KEY}.tokens): {ORIGINAL}")
    tokens = [token or f"[EMPTY_{id_}]" for id_, token in enumerate(tokens)]
    if len(set(tokens)) < len(tokens):
        twice = next(token for id_, token in enumerate(tokens) if tokens.index(token) != id_)
        raise ModelLoadError(
            f"{model.path} has the token {twice!r} twice in its vocabulary ({_KEY}.tokens): {ORIGINAL}"
        )
    for key in ("token_type", "scores"):
        listed = _value(model, key)
        if listed is not None and len(listed) != len(tokens):
            raise ModelLoadError(
                f"{model.path}: {_KEY}.{key} has {len(listed)} entries, and {_KEY}.tokens {len(tokens)}: {ORIGINAL}"
            )
    return tokens


def _splitting(model: GgufModel) -> Splitting:
    name = _value(model, "pre", "default")
    if name not in SPLITTINGS:
        raise ModelLoadError(
            f"{model.path} splits text as {name!r} ({_KEY}.pre), which RunGPT does not know exactly, and other tokens "
            f"would give other answers: {ORIGINAL}"
        )
    return SPLITTINGS[name]


def _byte_level(model: GgufModel, tokens: list[str], splitting: Splitting) -> Any:
    """Return a tokenizer of byte-level merges, as GPT-2's."""
    from tokenizers import Tokenizer, decoders, models, normalizers

    merges = _value(model, "merges")
    if merges is None:
        raise ModelLoadError(f"{model.path} has no merges ({_KEY}.merges): {ORIGINAL}")
    vocabulary = {token: id_ for id_, token in enumerate(tokens)}
    backend = Tokenizer(models.BPE(vocabulary, [_pair(merge) for merge in merges], ignore_merges=splitting.whole_words))
    backend.normalizer = normalizers.NFC() if splitting.composed else None
    backend.pre_tokenizer = pre_tokenizer(splitting)
    backend.decoder = decoders.ByteLevel()
    return backend


def _pair(merge: str) -> tuple[str, str]:
    """Return both parts of a merge: a space is part of the first one only as its first character."""
    at = merge.index(" ", 1)
    return merge[:at], merge[at + 1 :]


def _sentence_pieces(model: GgufModel, tokens: list[str]) -> Any:
    """Return a tokenizer of SentencePiece's merges, with bytes for characters that are no piece."""
    from tokenizers import Tokenizer, decoders, models, normalizers

    if model.architecture.startswith("gemma"):  # its runs of spaces are pieces, which the file spells with spaces
        tokens = [_SPACE * len(token) if token and not token.strip(" ") else token for token in tokens]
    unknown = special_id(model, "unknown_token_id")
    backend = Tokenizer(
        models.BPE(
            {token: id_ for id_, token in enumerate(tokens)},
            _piece_merges(model, tokens),
            unk_token=None if unknown is None else tokens[unknown],
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    prefix = bool(_value(model, "add_space_prefix", True))
    spaces = normalizers.Replace(" ", _SPACE)
    backend.normalizer = normalizers.Sequence([normalizers.Prepend(_SPACE), spaces]) if prefix else spaces
    plain = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    backend.decoder = decoders.Sequence([*plain, decoders.Strip(" ", 1, 0)] if prefix else plain)
    return backend


def _piece_merges(model: GgufModel, tokens: list[str]) -> list[tuple[str, str]]:
    """Return the merges that the file lists, or those that its scores mean: the best piece is made first."""
    from transformers.tokenization_utils_base import generate_merges

    if (merges := _value(model, "merges")) is not None:
        return [_pair(merge) for merge in merges]
    scores = _value(model, "scores")
    if scores is None:
        raise ModelLoadError(f"{model.path} has neither scores nor merges ({_KEY}.scores, {_KEY}.merges): {ORIGINAL}")
    if model.architecture.startswith("gemma"):  # its merges follow the vocabulary's order
        scores = [-id_ for id_ in range(len(tokens))]
    found: list[tuple[str, str]] = generate_merges(
        {token: id_ for id_, token in enumerate(tokens)}, dict(zip(tokens, scores, strict=True))
    )
    return found


def _add_special(model: GgufModel, backend: Any, tokens: list[str]) -> None:
    """Add the tokens that are taken whole wherever a text has them: special ones and those of the user."""
    from tokenizers import AddedToken

    vocabulary, kinds = backend.get_vocab(with_added_tokens=False), _value(model, "token_type", [])
    # Phi 3's special tokens take the spaces after them away; its file cannot say it.
    strips = model.architecture == "phi3" and _value(model, "model") == "llama"
    keep = {"<unk>", "<s>", "<|endoftext|>"}
    special, plain = [], []
    for token, kind in zip(tokens, kinds, strict=False):
        if token not in vocabulary:
            continue
        if kind == _CONTROL:
            special.append(AddedToken(token, normalized=False, special=True, rstrip=strips and token not in keep))
        elif kind == _USER_DEFINED:
            plain.append(AddedToken(token, normalized=False, special=False, rstrip=strips and token == "</s>"))
    backend.add_special_tokens(special)
    backend.add_tokens(plain)


def _surround(model: GgufModel, backend: Any, begins: bool) -> None:
    """Make the tokenizer write the tokens before and after each prompt that the file asks for."""
    from tokenizers import processors

    if _value(model, "add_sep_token", False):
        raise ModelLoadError(f"{model.path} asks for a separator after each prompt ({_KEY}.add_sep_token): {ORIGINAL}")
    parts, used = ["$A"], {}
    for flag, key, default in (("add_bos_token", "bos_token_id", begins), ("add_eos_token", "eos_token_id", False)):
        id_ = special_id(model, key)
        if not _value(model, flag, default) or (id_ is None and _value(model, flag) is None):
            continue
        if id_ is None:
            raise ModelLoadError(f"{model.path} has {_KEY}.{flag} without {_KEY}.{key}: {ORIGINAL}")
        token = backend.id_to_token(id_)
        used[token] = id_
        parts = [token, *parts] if flag == "add_bos_token" else [*parts, token]
    if used:
        pair = [part.replace("$A", name) for name in ("$A:0", "$B:1") for part in parts]
        backend.post_processor = processors.TemplateProcessing(
            single=parts, pair=pair, special_tokens=list(used.items())
        )


def _chat_template(model: GgufModel) -> str | dict[str, str] | None:
    """Return the chat template; several by name if the file has more than one."""
    default = model.metadata.get(_TEMPLATE)
    named = {key.removeprefix(f"{_TEMPLATE}."): text for key, text in model.metadata.items() if f"{_TEMPLATE}." in key}
    if not named:
        return default or None
    return {**({"default": default} if default else {}), **named}
