"""Chat with a model in this process and print its answer while it is made; no server is needed.

python examples/python_chat_stream.py [MODEL]
"""

import sys

import run_gpt

model_name = sys.argv[1] if len(sys.argv) > 1 else "smollm2"

with run_gpt.create_model(model_name, precision="fp32") as model:
    messages = [
        {"role": "system", "content": "You answer in one short sentence."},
        {"role": "user", "content": "What is the capital of France?"},
    ]
    for chunk in model.chat_stream(messages, max_new_tokens=32):
        print(chunk, end="", flush=True)
    print()
