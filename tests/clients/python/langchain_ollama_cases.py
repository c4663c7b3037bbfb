"""LangChain's chat model and embeddings for Ollama."""

from cases import BASE_URL, CITY_TOOL, MODEL, PARIS, case, run
from langchain_ollama import ChatOllama, OllamaEmbeddings, OllamaLLM

SERVER = BASE_URL.removesuffix("/v1")
chat = ChatOllama(model=MODEL, base_url=SERVER, temperature=0, num_predict=12)


@case("chat: text, async and a stream")
async def text() -> None:
    whole = chat.invoke(PARIS)
    assert "Paris" in str(whole.content)
    assert whole.usage_metadata is not None
    assert "".join(str(part.content) for part in chat.stream(PARIS)) == whole.content
    assert (await chat.ainvoke(PARIS)).content == whole.content


@case("chat: tools and a schema")
def tools() -> None:
    assert chat.bind_tools([CITY_TOOL]).invoke(PARIS) is not None
    schema = {"title": "City", **CITY_TOOL["function"]["parameters"]}  # type: ignore[index]
    formed = ChatOllama(model=MODEL, base_url=SERVER, temperature=0, num_predict=60).with_structured_output(schema)
    assert formed.invoke(PARIS)["city"] in ("Paris", "Rome")  # type: ignore[index]


@case("completions and embeddings")
def others() -> None:
    assert OllamaLLM(model=MODEL, base_url=SERVER, num_predict=8).invoke("Once upon a time")
    assert len(OllamaEmbeddings(model=MODEL, base_url=SERVER).embed_documents(["a", "b"])) == 2


run()
