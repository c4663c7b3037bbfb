"""Let a model call a function of yours, and answer with its result.

rungpt serve
python examples/tool_calls.py [grpc://127.0.0.1:51000]
"""

import json
import sys

from run_gpt import Client

endpoint = sys.argv[1] if len(sys.argv) > 1 else "grpc://127.0.0.1:51000"


def get_weather(city: str) -> dict[str, str | int]:
    """Return the weather: a function that the model may call. A real one would look it up."""
    return {"city": city, "sky": "rain", "degrees": 18}


FUNCTIONS = {"get_weather": get_weather}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "The weather in a city.",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string", "maxLength": 40}},
                "required": ["city"],
                "additionalProperties": False,
            },
        },
    }
]

with Client().get_model(endpoint=endpoint) as model:
    messages = [{"role": "user", "content": "What is the weather in Paris?"}]
    # The default model is small: without these hints it would neither call nor answer with the result. A larger one
    # needs neither tool_choice nor the last message.
    answer = model.chat(messages, tools=TOOLS, tool_choice="required", parallel_tool_calls=False, max_new_tokens=100)
    messages.append(answer.choices[0].message)
    for call in answer.choices[0].message.tool_calls or []:
        arguments = json.loads(call.function.arguments)
        result = FUNCTIONS[call.function.name](**arguments)
        print(f"{call.function.name}({arguments}) gave {result}")
        messages.append({"role": "tool", "tool_call_id": call.id, "content": json.dumps(result)})

    messages.append({"role": "user", "content": "Say it in a sentence."})
    print(model.chat(messages, tools=TOOLS, tool_choice="none", max_new_tokens=60))
