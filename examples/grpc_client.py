"""Ask a server over gRPC with RunGPT's client: calls and errors are the same as for a model in this process.

    rungpt serve
    python examples/grpc_client.py [grpc://127.0.0.1:51000]

An http:// endpoint does the same over HTTP.
"""

import sys

from run_gpt import Client
from run_gpt.errors import InvalidRequest

endpoint = sys.argv[1] if len(sys.argv) > 1 else "grpc://127.0.0.1:51000"

with Client().get_model(endpoint=endpoint) as model:
    print(model.chat("What is the capital of France?", max_new_tokens=32, timeout=60))

    for completion in model.generate(["One, two,", "Monday, Tuesday,"], max_new_tokens=8):
        print(completion.text)

    for event in model.generate_stream("The capital of France is", max_new_tokens=16):
        print(event, end="", flush=True)
    print()

    try:
        model.generate("Hi", temperature=9)
    except InvalidRequest as error:
        print(f"{error.param}: {error}")
