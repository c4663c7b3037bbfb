"""Hold answers to a form: a JSON schema, a list of choices, a regular expression.

rungpt serve
python examples/structured_output.py [grpc://127.0.0.1:51000]
"""

import json
import sys

from run_gpt import Client

endpoint = sys.argv[1] if len(sys.argv) > 1 else "grpc://127.0.0.1:51000"

schema = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 20},
        "continent": {"enum": ["Africa", "America", "Asia", "Australia", "Europe"]},
        "languages": {
            "type": "array",
            "items": {"enum": ["English", "French", "German"]},
            "minItems": 1,
            "maxItems": 2,
        },
    },
    "required": ["name", "continent", "languages"],
    "additionalProperties": False,
}

with Client().get_model(endpoint=endpoint) as model:
    # The form restricts the answer, but the model does not see it: so the question asks for it.
    answer = model.chat(
        "Describe France as JSON: its name, its continent, its official languages.",
        response_format={"type": "json_schema", "json_schema": {"schema": schema}},
        max_new_tokens=150,
    )
    country = json.loads(answer.text)
    print(country["name"], "|", country["continent"], "|", country["languages"])

    colours = {"type": "choice", "choice": ["red", "green", "blue"]}
    print(model.chat("What colour is the sky on a clear day?", response_format=colours))

    year = {"type": "regex", "regex": "[0-9]{4}"}
    print(model.generate("The Second World War ended in the year ", response_format=year))
