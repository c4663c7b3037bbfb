"""Ask a server over HTTP with nothing but `requests`, and print an error.

rungpt serve
python examples/http_requests.py [http://127.0.0.1:52000]
"""

import sys

import requests

endpoint = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:52000"

chat = {"messages": [{"role": "user", "content": "What is the capital of France?"}], "max_new_tokens": 32}
response = requests.post(f"{endpoint}/chat", json=chat, timeout=60)
response.raise_for_status()
answer = response.json()
print(answer["choices"][0]["message"]["content"])
print(answer["usage"])

wrong = requests.post(f"{endpoint}/generate", json={"prompt": "Hi", "temperature": 9}, timeout=60)
print(wrong.status_code, wrong.json()["error"]["message"])
