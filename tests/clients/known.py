"""The clients that are tested: what each is, where its packages and its cases are, and what its users set."""

import json
import re
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class Client:
    """One client, in one language."""

    name: str
    """Name of its files: `python/NAME_cases.py` and `python/NAME.txt`, or `node/NAME_cases.mjs` and `node/NAME/`."""
    title: str
    package: str
    """Package whose version the document names."""
    sets: str
    """Setting of its user, in Markdown; `URL` is the server's address with `/v1`."""
    node: bool = False
    most_used: bool = False
    """True for a client that `make test` runs, too."""
    own: bool = False
    """True for the client that is installed with RunGPT's development tools."""
    torch: bool = False
    """True for a client that takes torch from our own environment."""
    needs: str | None = None
    """Environment variable with the interpreter of an environment that is too large to be made for a test."""

    @property
    def cases_file(self) -> Path:
        """Script with its cases. One that only calls programs is Python's even if the client is Node's."""
        module = FOLDER / "node" / f"{self.name}_cases.mjs"
        return module if module.exists() else FOLDER / "python" / f"{self.name}_cases.py"

    @property
    def cases(self) -> list[str]:
        """Names of its cases, in order."""
        return re.findall(r'^(?:@case|case_)\("([^"]+)"', self.cases_file.read_text(), re.MULTILINE)

    @property
    def pins(self) -> Path:
        """File or folder with its pinned packages."""
        return FOLDER / "node" / self.name if self.node else FOLDER / "python" / f"{self.name}.txt"

    @property
    def version(self) -> str:
        """Version that is tested."""
        if self.node:
            return str(json.loads((self.pins / "package.json").read_text())["dependencies"][self.package])
        if self.needs:
            return "the one that is there"
        pins = FOLDER.parents[1] / "constraints.txt" if self.own else self.pins
        name = re.sub("[-_.]+", "[-_.]+", self.package)
        found = re.search(rf"^{name}==(.+)$", pins.read_text(), re.MULTILINE | re.IGNORECASE)
        assert found, f"{pins}: no {self.package}"
        return found[1]


BASE = "`base_url=URL`, any `api_key`"
CLIENTS = (
    Client("openai", "OpenAI's Python client", "openai", BASE, own=True, most_used=True),
    Client(
        "openai_node",
        "OpenAI's client for JavaScript",
        "openai",
        "`baseURL: URL`, any `apiKey`",
        node=True,
        most_used=True,
    ),
    Client(
        "langchain",
        "LangChain",
        "langchain-openai",
        BASE + "; embeddings: `check_embedding_ctx_length=False`",
        most_used=True,
    ),
    Client(
        "llama_index",
        "LlamaIndex",
        "llama-index-llms-openai-like",
        "`OpenAILike`: `api_base=URL`, `is_chat_model=True`, `is_function_calling_model=True`",
        most_used=True,
    ),
    Client(
        "anthropic",
        "Anthropic's Python client",
        "anthropic",
        "`base_url=` the address without `/v1`, any `api_key`",
        most_used=True,
    ),
    Client("ollama", "Ollama's Python client", "ollama", "`host=` the address without `/v1`", most_used=True),
    Client(
        "langchain_ollama",
        "LangChain's package for Ollama",
        "langchain-ollama",
        "`base_url=` the address without `/v1`",
    ),
    Client(
        "litellm", "LiteLLM", "litellm", "model `openai/NAME` or `hosted_vllm/NAME`, `api_base=URL`", most_used=True
    ),
    Client(
        "langchain_js", "LangChain for JavaScript", "@langchain/openai", "`configuration: { baseURL: URL }`", node=True
    ),
    Client(
        "ai_sdk",
        "Vercel's AI SDK",
        "ai",
        "`createOpenAICompatible({ baseURL: URL })`, or `createOpenAI` with `store: false` for responses",
        node=True,
    ),
    Client("agents_js", "OpenAI's agents for JavaScript", "@openai/agents", "`setDefaultOpenAIClient`", node=True),
    Client(
        "codex",
        "Codex CLI",
        "@openai/codex",
        'a provider in `config.toml`: `base_url = URL`, `wire_api = "responses"`',
        node=True,
    ),
    Client("instructor", "Instructor", "instructor", BASE + ", of OpenAI's client"),
    Client("outlines", "Outlines", "outlines", BASE + ", of OpenAI's client"),
    Client("pydantic_ai", "Pydantic AI", "pydantic-ai-slim", "`OpenAIProvider(base_url=URL)`"),
    Client("openai_agents", "OpenAI's agents", "openai-agents", "`AsyncOpenAI(base_url=URL)` as the model's client"),
    Client("dspy", "DSPy", "dspy", "model `openai/NAME`, `api_base=URL`"),
    Client("haystack", "Haystack", "haystack-ai", "`api_base_url=URL`"),
    Client("semantic_kernel", "Semantic Kernel", "semantic-kernel", "`AsyncOpenAI(base_url=URL)` as `async_client`"),
    Client("autogen", "AutoGen", "autogen-ext", "`base_url=URL`, `model_info`"),
    Client("ag2", "AG2", "ag2", "`base_url` of the configuration"),
    Client("smolagents", "smolagents", "smolagents", "`OpenAIServerModel(api_base=URL)`"),
    Client("llm", "LLM", "llm", "`extra-openai-models.yaml`: `api_base: URL`"),
    Client("shell_gpt", "ShellGPT", "shell-gpt", "`API_BASE_URL=URL`"),
    Client("magentic", "magentic", "magentic", "`OpenaiChatModel(base_url=URL)`"),
    Client(
        "guidellm", "GuideLLM", "guidellm", "`--backend kind=openai_http,target=` the address without `/v1`", torch=True
    ),
    Client("mirascope", "Mirascope", "mirascope", '`register_provider("openai", base_url=URL)`'),
    Client("lm_eval", "lm-evaluation-harness", "lm_eval", "`--model_args base_url=URL/completions`"),
    Client("inspect_ai", "Inspect", "inspect-ai", "model `openai-api/NAME/MODEL`, `base_url=URL`"),
    Client("vllm_bench", "vLLM's benchmark", "vllm", "`--base-url` without `/v1`", needs="RUNGPT_TEST_VLLM_PYTHON"),
    Client(
        "opencode",
        "OpenCode",
        "opencode-linux-x64",
        "a provider in `opencode.json`: `@ai-sdk/openai-compatible`, `baseURL: URL`",
        node=True,
    ),
)
