"""Without these tests perplexities could be wrong: the engine's scores must be equal to those of transformers."""

import math
from pathlib import Path

import pytest
import torch
import transformers
from families import write_checkpoint

from run_gpt.bench.offline_subject import Variant

TEXT = (Path(__file__).parents[2] / "data" / "alice.txt").read_text()
SIZES = [(256, 128, 1500), (256, 256, 1500), (64, 10, 300), (1024, 512, 2000)]


def plain(model, ids, window, stride):
    """Compute perplexity and scored tokens as in the documentation of transformers: labels before the stride are
    masked, and the model shifts them."""
    total, count, done = 0.0, 0, 0
    for start in range(0, len(ids), stride):
        end = min(start + window, len(ids))
        inputs = torch.tensor([ids[start:end]])
        labels = inputs.clone()
        labels[:, : done - start if done else 0] = -100
        scored = int((labels[:, 1:] != -100).sum())
        if scored:
            with torch.inference_mode():
                total, count = total + float(model(inputs, labels=labels).loss) * scored, count + scored
        done = end
        if end == len(ids):
            break
    return math.exp(total / count), count


@pytest.mark.parametrize("family", ["llama", "pythia"])  # the native and the generic runner
def test_perplexity_is_that_of_a_plain_computation_on_the_same_windows(family, tmp_path):
    folder = write_checkpoint(family, tmp_path / family)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    ids = transformers.AutoTokenizer.from_pretrained(folder)(TEXT, verbose=False)["input_ids"]
    subject = Variant(str(folder), "fp32", device="cpu", max_running=4).load()
    baseline = Variant(str(folder), "fp32", generate=True, device="cpu").load()
    try:
        for window, stride, tokens in SIZES:
            expected, count = plain(model, ids[:tokens], window, stride)
            for one in (subject, baseline):
                found = one.perplexity(TEXT, window, stride, tokens)
                assert found["tokens"] == count
                assert found["perplexity"] == pytest.approx(expected, rel=1e-3)
    finally:
        subject.model.shutdown()
