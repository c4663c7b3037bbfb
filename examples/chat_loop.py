"""A conversation with a server that remembers its earlier turns.

    rungpt serve
    python examples/chat_loop.py [grpc://127.0.0.1:51000] [MESSAGE ...]

The given messages are sent one after the other; without any, you type them, until Ctrl-D.
"""

import sys
from collections.abc import Iterator

from run_gpt import Client

endpoint = sys.argv[1] if len(sys.argv) > 1 else "grpc://127.0.0.1:51000"


def typed() -> Iterator[str]:
    """Yield the lines that the user types."""
    while True:
        try:
            yield input("> ")
        except EOFError:
            return


conversation: list[dict[str, str]] = []
with Client().get_model(endpoint=endpoint) as model:
    for message in sys.argv[2:] or typed():
        conversation.append({"role": "user", "content": message})
        answer = ""
        for chunk in model.chat_stream(conversation, max_new_tokens=128):
            print(chunk, end="", flush=True)
            answer += chunk.text
        print()
        conversation.append({"role": "assistant", "content": answer})
