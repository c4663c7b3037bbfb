"""Stream an answer over HTTP: server-sent events, read with `sseclient-py`.

rungpt serve
python examples/http_sseclient_stream.py [http://127.0.0.1:52000]
"""

import json
import sys

import requests
import sseclient

endpoint = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:52000"

body = {"prompt": "The capital of France is", "max_new_tokens": 16}
with requests.post(f"{endpoint}/generate_stream", json=body, stream=True, timeout=60) as response:
    response.raise_for_status()
    for event in sseclient.SSEClient(response.iter_content(chunk_size=None)).events():
        data = json.loads(event.data)
        if event.event == "error":
            sys.exit(data["error"]["message"])
        print(data["choices"][0]["text"], end="", flush=True)
print()
