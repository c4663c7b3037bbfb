"""Continue texts with a model in this process; no server is needed.

python examples/python_generate.py [MODEL]
"""

import sys

import run_gpt

model_name = sys.argv[1] if len(sys.argv) > 1 else "smollm2"

with run_gpt.create_model(model_name, precision="fp32") as model:
    # Greedy: the same answer every time.
    answer = model.generate("The capital of France is", max_new_tokens=8)
    print(answer.text)
    print(answer.usage)

    # Sampled: two answers to each of two prompts, which run together. The seed makes them repeatable.
    prompts = ["Once upon a time", "The best thing about the sea is"]
    for prompt, completion in zip(
        prompts,
        model.generate(prompts, max_new_tokens=12, temperature=0.9, top_k=50, top_p=0.95, n=2, seed=1),
        strict=True,
    ):
        for choice in completion.choices:
            print(f"{prompt} ...{choice.text!r} ({choice.finish_reason})")
