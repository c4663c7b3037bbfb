"""Fields of Ollama's API beside those of the schemas, each with the reason; docs/ollama.md is made from it."""

from run_gpt.api.field_tables import OTHER_SAMPLING, SENT_BACK, TEXT_ONLY
from run_gpt.api.fields import Entry, Table

OF_THE_SERVER = "the server's operator sets it at its start"
_REQUEST = {"keep_alive": Entry("`--unload-after` says how long a model stays")}

CHAT = Table(hints=_REQUEST)
GENERATE = Table(
    refused={
        "images": Entry(TEXT_ONLY, ([],)),
        "template": Entry("the server's template makes the prompt; `raw` goes without it", ("",)),
        "context": Entry("send the conversation to /api/chat", ([],)),
    },
    hints=_REQUEST,
)
EMBED = Table(hints={**_REQUEST, "options": Entry(OF_THE_SERVER)})
MESSAGE = Table(place="messages.", refused={"images": Entry(TEXT_ONLY, ([],))}, hints={"tool_name": Entry(SENT_BACK)})
CALL = Table(place="messages.tool_calls.", hints={"type": Entry(SENT_BACK)})
FUNCTION = Table(place="messages.tool_calls.function.", hints={"index": Entry(SENT_BACK)})
OPTIONS = Table(
    place="options.",
    refused={
        "mirostat": Entry(OTHER_SAMPLING, (0,)),
        "tfs_z": Entry(OTHER_SAMPLING, (1, 1.0)),
        "typical_p": Entry(OTHER_SAMPLING, (1, 1.0)),
    },
    hints={
        **{
            name: Entry(OF_THE_SERVER)
            for name in (
                *("num_ctx", "num_batch", "num_gpu", "main_gpu", "num_thread", "num_keep", "numa", "low_vram"),
                *("f16_kv", "use_mmap", "use_mlock", "vocab_only", "logits_all", "embedding_only", "draft_num_predict"),
            )
        },
        "mirostat_eta": Entry("a parameter of a sampling that is off"),
        "mirostat_tau": Entry("a parameter of a sampling that is off"),
        "penalize_newline": Entry("line breaks are tokens as others are", (True,)),
        "repeat_last_n": Entry("penalties count all of the prompt and the answer"),
    },
)
