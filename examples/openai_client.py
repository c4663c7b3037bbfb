"""Ask a server with the published `openai` client: whole, streamed, and several prompts at once.

pip install openai
rungpt serve
python examples/openai_client.py [http://127.0.0.1:52000]
"""

import sys

from openai import BadRequestError, OpenAI

endpoint = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:52000"
client = OpenAI(base_url=f"{endpoint}/v1", api_key="anything")  # one of the server's keys, if it has any
model = client.models.list().data[0].id

messages = [{"role": "user", "content": "What is the capital of France?"}]
answer = client.chat.completions.create(model=model, messages=messages, temperature=0)
print(answer.choices[0].message.content)

stream = client.chat.completions.create(
    model=model, messages=messages, temperature=0, stream=True, stream_options={"include_usage": True}
)
for chunk in stream:
    if chunk.choices:
        print(chunk.choices[0].delta.content or "", end="", flush=True)
    else:
        print(f"\n{chunk.usage.completion_tokens} tokens")

completions = client.completions.create(
    model=model, prompt=["One, two,", "Monday, Tuesday,"], max_tokens=8, temperature=0
)
for choice in completions.choices:
    print(choice.text)

try:
    client.chat.completions.create(model=model, messages=messages, modalities=["text", "audio"])
except BadRequestError as error:
    print(error.body["message"])
