"""Send many requests at once from one thread: the server decodes them together.

rungpt serve
python examples/async_many.py [grpc://127.0.0.1:51000]
"""

import asyncio
import sys
import time

from run_gpt import Client

COUNTRIES = ["France", "Italy", "Spain", "Portugal", "Germany", "Austria", "Poland", "Greece"]


async def main(endpoint: str) -> None:
    """Ask for eight capitals and print them in order."""
    async with Client().get_model(endpoint=endpoint) as model:
        start = time.perf_counter()
        questions = [f"What is the capital of {country}?" for country in COUNTRIES]
        answers = await asyncio.gather(*(model.achat(question, max_new_tokens=24) for question in questions))
        seconds = time.perf_counter() - start
    for question, answer in zip(questions, answers, strict=True):
        print(f"{question} {answer}")
    tokens = sum(answer.usage.completion_tokens for answer in answers)
    print(f"{tokens} tokens in {seconds:.1f} s: {tokens / seconds:.0f} a second")


asyncio.run(main(sys.argv[1] if len(sys.argv) > 1 else "grpc://127.0.0.1:51000"))
