"""Without these tests a model that fits the memory by its estimate would not fit it once it is loaded."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from families import FAMILIES, build, copied_tokenizer
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

import run_gpt
from run_gpt.engine.runners.native.build import unsupported
from run_gpt.models.estimate import estimate_folder

LONG = 1 << 20
_GROWTH = """
import sys, run_gpt
from run_gpt.models.estimate import estimate_folder
def used(): return int(open("/proc/self/statm").read().split()[1]) * 4096
def run(folder):
    with run_gpt.create_model(folder, precision="fp32", device="cpu", runner="native", max_running=1) as model:
        model.generate("a b", max_new_tokens=2)
        return used()
run(sys.argv[1])  # libraries and kernels
before = used()
print(run(sys.argv[2]) - before)
"""


@pytest.mark.skipif(unsupported() is not None, reason=str(unsupported()))
def test_a_model_takes_what_the_estimate_says_also_with_a_context_of_a_million_tokens(tmp_path: Path) -> None:
    """Compare the growth of a process: 24 MB of weights, where a whole table of rotary angles takes 134 MB or more."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 8, "num_attention_heads": 4}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=320, max_position_embeddings=LONG, **sizes))
    for folder, one in ((tmp_path / "small", build(FAMILIES["llama"])), (tmp_path / "long", model)):
        one.save_pretrained(folder)
        copied_tokenizer().save_pretrained(folder)
    estimate = estimate_folder(tmp_path / "long")
    assert estimate is not None
    expected = estimate.least("fp32")
    assert expected > sum(parameter.nbytes for parameter in model.parameters())
    run = [sys.executable, "-c", _GROWTH, str(tmp_path / "small"), str(tmp_path / "long")]
    out = subprocess.run(run, check=True, capture_output=True, text=True, timeout=120).stdout
    assert int(out.split()[-1]) < expected + 40_000_000


@pytest.mark.skipif(unsupported() is not None, reason=str(unsupported()))
def test_positions_beyond_the_first_table_are_as_transformers_has_them(tmp_path: Path) -> None:
    build(FAMILIES["llama"]).save_pretrained(tmp_path)
    copied_tokenizer().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 8192}))
    ids = torch.randint(10, 300, (1, 4092), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        out = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=12, eos_token_id=2
        )
    expected = copied_tokenizer().decode(out[0, 4092:], skip_special_tokens=True, clean_up_tokenization_spaces=False)
    with run_gpt.create_model(str(tmp_path), precision="fp32", device="cpu", runner="native") as model:
        assert model.generate(ids[0].tolist(), max_new_tokens=12).text == expected
