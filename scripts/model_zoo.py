"""Print MODEL_ZOO.md, made from the catalogue; `--write` writes it. A test compares it."""

import sys
from pathlib import Path

from transformers import AutoConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from run_gpt.engine.runners.native.families import FAMILIES as NATIVE
from run_gpt.models import moss
from run_gpt.models.catalogue import CATALOGUE, FAMILIES, CatalogueEntry, HubSource
from run_gpt.models.templates import PLAIN, find_template

MODEL_ZOO = Path(__file__).parents[1] / "MODEL_ZOO.md"

BEGIN = """# Model zoo

The models that RunGPT knows by a short name, and the families that it serves. A model of these families that is not
listed is served by its hub id, a folder or a GGUF file: `rungpt serve org/model`, `rungpt serve ./folder`. Each family
runs in fp32, bf16, fp16, bit8 and bit4; what of that is tested, and where, stands in
[docs/support-matrix.md](docs/support-matrix.md).

* **Runner**: what `--runner auto` takes, see [docs/engine.md](docs/engine.md). `native` needs a CPU that the kernels
  know; elsewhere, and on GPUs, Llama, Mistral, Qwen 2 and 3 and SmolLM have `fast`, others `generic`.
* **Chat**: a tokenizer's own template always comes first. For one without, the named form of the model's card
  (`run_gpt/models/templates.py`), else plain lines of `User: ...` and `Assistant: ...`, which RunGPT says at the start.
* **Weights** are safetensors or GGUF. A repository that has only pickled weights, as some of the older ones have, is
  refused with a line that names `--allow-pickle`; add it if you trust the repository.
* No model here needs `--trust-remote-code`. Gated repositories need your consent on the hub and `HF_TOKEN`.

This file is made by `python scripts/model_zoo.py --write`.
"""


def runner(model_type: str) -> str:
    """Return the runner of a family on a CPU."""
    if model_type in NATIVE:
        return "`native`"
    moss.register()
    architecture = MODEL_FOR_CAUSAL_LM_MAPPING[type(AutoConfig.for_model(model_type))]
    return "`alone`, one request after the other" if architecture._is_stateful else "`generic`"


def row(entry: CatalogueEntry) -> str:
    """Return a model's line in its family's table."""
    source = entry.source
    where, options = "the package index", ""
    if isinstance(source, HubSource):
        where = f"[{source.repo}](https://huggingface.co/{source.repo})"
        options = " --allow-pickle" if source.pickled else ""
    template = find_template(entry.name, "", FAMILIES[entry.family])
    own = "plain lines" if "plain text" in entry.description else "its own"
    chat = own if template is PLAIN else f"its own, else `{template.name}`"
    size = f"{entry.parameters / 1e9:.1f} B" if entry.parameters >= 1e9 else f"{entry.parameters / 1e6:.0f} M"
    return (
        f"| {entry.description} | {where} | {size} | {entry.licence} | {chat} | `rungpt serve {entry.name}{options}` |"
    )


def model_zoo() -> str:
    """Return the text of the whole file."""
    parts = [BEGIN]
    for family, model_type in FAMILIES.items():
        parts.append(f"\n## {family}\n\nRunner: {runner(model_type)}. `model_type`: `{model_type}`.\n\n")
        parts.append("| model | from | parameters | licence | chat | command |\n")
        parts.append("|---|---|---|---|---|---|\n")
        parts.extend(row(entry) + "\n" for entry in CATALOGUE if entry.family == family)
    return "".join(parts)


if __name__ == "__main__":
    if "--write" in sys.argv:
        MODEL_ZOO.write_text(model_zoo())
    else:
        print(model_zoo(), end="")
