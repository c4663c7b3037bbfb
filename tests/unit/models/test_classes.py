"""Classes of models: a model that is no causal LM must be refused by name, or a user waits for answers of no sense."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from families import copied_tokenizer

from run_gpt.config import ModelConfig
from run_gpt.errors import ModelLoadError
from run_gpt.models import load
from run_gpt.models.classes import check_class
from run_gpt.models.files import ModelFiles

BERT = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
LLAMA = {**BERT, "num_key_value_heads": 2, "vocab_size": 320, "pad_token_id": 0}
SEQ2SEQ = {"d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32}
WRITTEN: dict[str, tuple[str, dict[str, Any], str]] = {
    "BertForMaskedLM": ("Bert", BERT, r"fills in masked words \(BertForMaskedLM.*fill-mask"),
    "BertLMHeadModel": ("Bert", BERT, r"an encoder \(bert without is_decoder.*sentence-transformers"),
    "RobertaForCausalLM": ("Roberta", BERT, r"an encoder \(roberta without is_decoder"),
    "ElectraForPreTraining": ("Electra", BERT, r"heads of its pre-training \(ElectraForPreTraining"),
    "LlamaForSequenceClassification": ("Llama", LLAMA, r"a classifier or reward model.*text-classification"),
    "LlamaModel": ("Llama", LLAMA, r"without an output layer.*LlamaModel.*sentence-transformers"),
    "BartForConditionalGeneration": ("Bart", SEQ2SEQ, "an encoder-decoder model"),
    "XLNetLMHeadModel": ("XLNet", {"d_model": 32, "n_layer": 1, "n_head": 2, "d_inner": 32}, "keeps no cache"),
    "OpenAIGPTLMHeadModel": ("OpenAIGPT", {"n_embd": 32, "n_layer": 1, "n_head": 2}, "keeps no cache"),
    "Gemma3TextModel": ("Gemma3Text", {**LLAMA, "use_bidirectional_attention": True}, "without an output layer"),
}


@pytest.mark.parametrize("architecture", WRITTEN)
def test_what_is_no_causal_language_model_is_refused_by_name(architecture: str, tmp_path: Path) -> None:
    family, config, reason = WRITTEN[architecture]
    torch.manual_seed(0)
    model = getattr(transformers, architecture)(getattr(transformers, f"{family}Config")(**config))
    model.save_pretrained(tmp_path)
    copied_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(ModelLoadError, match=reason) as refused:
        load(ModelConfig(model_name=str(tmp_path), device="cpu"))
    assert "\n" not in str(refused.value)


def content(family: str, *architectures: str, **more: Any) -> dict[str, Any]:
    return {"model_type": family, "architectures": list(architectures), **more}


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (content("bert"), "an encoder"),
        (content("t5"), "an encoder-decoder model"),
        (content("bart", "BartForCausalLM", is_decoder=True, is_encoder_decoder=False), "an encoder-decoder model"),
        (content("marian", "MarianMTModel"), "an encoder-decoder model"),
        (content("qwen2", "Qwen2ForRewardModel"), "a classifier or reward model"),
        (content("bloom", "BloomForTokenClassification"), "a model for token classification"),
        (content("whisper", "WhisperForConditionalGeneration"), "a model for speech"),
        (content("vit", "ViTForImageClassification"), "a model for image classification"),
        (content("clip", "CLIPModel"), "without an output layer"),
        (content("blip", "BlipForConditionalGeneration"), "a model for image text to text"),
        (content("xlm", "XLMWithLMHeadModel"), "no causal language model|keeps no cache"),
        (content("reformer", "ReformerModelWithLMHead"), "keeps no cache"),
        (content("roformer", "RoFormerForCausalLM", is_decoder=True), "the padding of a batch"),
        (content("recurrent_gemma", "RecurrentGemmaForCausalLM"), "keeps no cache"),
        (content("trocr", "TrOCRForCausalLM", is_decoder=True), "an encoder-decoder model"),
        (content("qwen2", "Qwen2ForCausalLM", is_causal=False), r"an encoder \(is_causal"),
        (content("gemma3_text", "Gemma3ForCausalLM", use_bidirectional_attention=True), "an encoder"),
        (content("new", "NewForSequenceClassification"), "a classifier"),
    ],
)
def test_config_json_says_what_a_model_is(config: dict[str, Any], reason: str) -> None:
    with pytest.raises(ModelLoadError, match=reason):
        check_class(ModelFiles("m", Path("m")), json.loads(json.dumps(config)), trust_remote_code=False)


CODE = {"auto_map": {"AutoModelForCausalLM": "modeling.Model"}}


@pytest.mark.parametrize(
    ("config", "trusted"),
    [
        (content("llama", "LlamaForCausalLM"), False),
        (content("llama", "LLaMAForCausalLM"), False),
        (content("gpt2", "GPT2LMHeadModel"), False),
        ({"model_type": "gpt2"}, False),
        (content("bert", "BertLMHeadModel", is_decoder=True), False),
        (content("mamba", "MambaForCausalLM"), False),
        (content("moss", "MossForCausalLM", **CODE), False),
        (content("RefinedWebModel", "RWForCausalLM", **CODE), False),
        (content("chatglm", "ChatGLMModel", **CODE), True),
        (content("gemma3", "Gemma3ForConditionalGeneration"), False),
    ],
)
def test_a_causal_language_model_is_taken(config: dict[str, Any], trusted: bool) -> None:
    check_class(ModelFiles("m", Path("m")), config, trust_remote_code=trusted)


def test_a_classifier_without_a_class_is_not_called_damaged(tmp_path: Path) -> None:
    transformers.LlamaForSequenceClassification(transformers.LlamaConfig(**LLAMA)).save_pretrained(tmp_path)
    copied_tokenizer().save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "architectures": None}))
    with pytest.raises(ModelLoadError, match=r"no output layer \(lm_head.weight\).*a classifier"):
        load(ModelConfig(model_name=str(tmp_path), device="cpu"))
