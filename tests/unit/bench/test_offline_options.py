"""Without these tests a run could measure something else than the options ask for, or end when one variant fails."""

import subprocess
import sys

import pytest

from run_gpt.bench import offline
from run_gpt.bench.offline import Case, Options, measure
from run_gpt.cli import bench_model
from run_gpt.errors import SetupError

ABOUT = {"precision": "fp32", "runner": "native", "device": "cpu", "threads": 1, "context": 1024, "cache": 4000}


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"precisions": ("fp33",)}, "--precision fp33"),
        ({"compile": ("int8",)}, "--compile int8"),
        ({"data": ("c5",)}, "--data c5"),
        ({"precisions": ()}, "nothing to measure"),
        ({"batches": (0,)}, "--batch"),
        ({"prompt_tokens": ()}, "--prompt-tokens"),
        ({"new_tokens": 1}, "--new-tokens 1"),
        ({"max_tokens": -1}, "--max-tokens"),
    ],
)
def test_what_cannot_be_measured_is_refused_and_named(given, named):
    with pytest.raises(SetupError, match=named):
        Options(**given)


def test_compiling_adds_the_generic_runner_with_and_without_and_generate_stands_first():
    names = [v.name for v in Options(precisions=("bf16",), compile=("fp32",), generate=("bf16",)).variants()]
    assert names == ["bf16, transformers", "bf16", "fp32, generic", "fp32, generic, compiled"]


def test_the_command_line_reads_lists_with_commas(monkeypatch):
    seen = []
    monkeypatch.setattr(bench_model, "_run", lambda options, *_: seen.append(options))
    bench_model.model(precision="fp32, bit4", prompt_tokens="7,9", batch="2", data="none", compile="fp32,")
    assert seen == [
        Options(precisions=("fp32", "bit4"), prompt_tokens=(7, 9), batches=(2,), data=(), compile=("fp32",))
    ]
    with pytest.raises(SetupError, match="--batch 1;4"):
        bench_model.model(batch="1;4")


def test_help_needs_no_torch():
    code = "import sys, run_gpt.cli.bench_model; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0


class Scripted:
    """Process that fails for certain precisions, and records which precisions were measured."""

    asked: list[str]

    def __init__(self, variant):
        self.precision, self.others, self.alive = variant.precision, 0.0, True
        if variant.precision == "fp16":
            raise SetupError("no fp16 here")
        self.about = ABOUT

    def call(self, method, **arguments):
        if method == "measure":
            Scripted.asked.append(self.precision)
            if self.precision == "bit4":
                self.alive = False
                raise SetupError("its process ended")
            return {"prefill": 1.0, "decode_step": 0.1}
        return {"loading": 1.0, "peak": 2.0} if method == "memory" else None

    def close(self):
        self.alive = False


def test_what_one_variant_cannot_do_is_noted_and_the_others_take_their_turns(monkeypatch):
    monkeypatch.setattr(offline, "Process", Scripted)
    Scripted.asked = []
    options = Options(
        precisions=("fp32", "fp16", "bit4", "bf16"), prompt_tokens=(100, 1000), batches=(2, 60), repeat=2, data=()
    )
    fp32, fp16, bit4, bf16 = measure(options, lambda _: None).results
    assert Scripted.asked == ["fp32", "bit4", "bf16", "fp32", "bf16"]
    assert fp16.failed == "no fp16 here"
    assert bit4.failed == "its process ended"
    for result in (fp32, bf16):
        assert result.rounds == {Case(100, 2): [{"prefill": 1.0, "decode_step": 0.1}] * 2}
        assert result.reasons[Case(100, 60)] == "9900 tokens exceed the cache of 4000"
        assert result.reasons[Case(1000, 2)] == "1065 tokens exceed the context of 1024"
        assert result.memory == {"loading": 1.0, "peak": 2.0}
        assert not result.failed
