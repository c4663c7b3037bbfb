"""`client.completions`. Without these tests, programs that continue or score texts could get wrong or no answers."""

from typing import Any

import openai
import pytest

from run_gpt.api.openai.completions import CompletionRequest

CAPITAL = "The capital of France is"
SEA = "In a village by the sea lived"
UMLAUTS = "naïve 日本 😀 café"


def ids(plain: Any, text: str) -> list[int]:
    return list(plain.tokenizer(text)["input_ids"])


def test_greedy_goes_on_as_the_model_does_whichever_way_it_is_asked(ask: Any, plain: Any, greedy: Any) -> None:
    answer = ask.completions(CAPITAL, max_tokens=8)
    assert answer.only.text == greedy(ids(plain, CAPITAL), 8)
    assert "Paris" in answer.only.text
    assert (answer.only.finish_reason, answer.usage) == ("length", (5, 8, 13))


def test_the_default_is_sixteen_tokens(ask: Any) -> None:
    assert ask.completions(CAPITAL).usage[1] == 16


def test_prompts_are_texts_or_token_ids_one_or_many(ask: Any, plain: Any) -> None:
    texts = [CAPITAL, SEA]
    both = ask.completions(texts, max_tokens=4)
    alone = [ask.completions(text, max_tokens=4) for text in texts]
    assert [choice.text for choice in both.choices] == [answer.only.text for answer in alone]
    assert both.usage == tuple(sum(numbers) for numbers in zip(*(answer.usage for answer in alone), strict=True))
    numbers = [ids(plain, text) for text in texts]
    assert ask.completions(numbers, max_tokens=4) == both
    assert ask.completions(numbers[0], max_tokens=4) == alone[0]


def test_n_counts_the_choices_through_all_prompts(ask: Any) -> None:
    """Otherwise a program would take one prompt's answer for another's."""
    answer = ask.completions([CAPITAL, SEA], n=2, seed=3, temperature=0.8, max_tokens=3, echo=True)
    assert [choice.text.startswith(text) for choice in answer.choices for text in (CAPITAL, SEA)] == [
        *(True, False, True, False),
        *(False, True, False, True),
    ]
    assert answer.usage[1] == 12


def test_logprobs_are_those_of_the_model_with_their_places_in_the_text(ask: Any, plain: Any, scores: Any) -> None:
    choice = ask.completions(SEA, max_tokens=4, logprobs=2).only
    prompt = ids(plain, SEA)
    answer = ids(plain, SEA + choice.text)[len(prompt) :]
    rows = scores(prompt + answer)[len(prompt) - 1 :]
    assert "".join(choice.tokens) == choice.text
    assert choice.token_logprobs == pytest.approx([r[t].item() for r, t in zip(rows, answer, strict=True)], abs=1e-3)
    for row, top in zip(rows, choice.top, strict=True):
        assert [text for text, _ in top] == [plain.tokenizer.decode([i]) for i in row.topk(2).indices]
    assert choice.offsets == [len("".join(choice.tokens[:i])) for i in range(4)]


@pytest.mark.parametrize("max_tokens", [0, 3])
@pytest.mark.parametrize("text", [SEA, UMLAUTS])
def test_echo_scores_the_prompt_as_a_plain_forward_pass_does(
    ask: Any, plain: Any, scores: Any, text: str, max_tokens: int
) -> None:
    """Otherwise evaluations would rank answers by wrong numbers."""
    choice = ask.completions(text, max_tokens=max_tokens, echo=True, logprobs=1).only
    prompt = ids(plain, text)
    assert choice.text.startswith(text)
    assert len(choice.tokens) == len(prompt) + max_tokens
    assert (choice.token_logprobs[0], choice.top[0]) == (None, None)
    rows = scores(prompt)
    expected = [row[token].item() for row, token in zip(rows, prompt[1:], strict=True)]
    assert choice.token_logprobs[1 : len(prompt)] == pytest.approx(expected, abs=1e-3)
    for row, token, top in zip(rows, prompt[1:], choice.top[1 : len(prompt)], strict=True):
        assert max(value for _, value in top) == pytest.approx(row.max().item(), abs=1e-3)
        assert len(top) <= 1 + (token != row.argmax())
    if max_tokens == 0:
        assert (choice.text, choice.finish_reason) == (text, "length")


def test_places_in_the_text_are_counted_in_characters(ask: Any, plain: Any) -> None:
    choice = ask.completions(UMLAUTS, max_tokens=0, echo=True, logprobs=0).only
    pieces = [plain.tokenizer.decode([i]) for i in ids(plain, UMLAUTS)]
    assert any("\ufffd" in piece for piece in pieces), "no character here is split"
    for piece, offset in zip(pieces, choice.offsets, strict=True):
        if "\ufffd" not in piece:
            assert UMLAUTS[offset:].startswith(piece)


def test_echo_without_logprobs_and_without_new_tokens(ask: Any) -> None:
    answer = ask.completions([CAPITAL, SEA], echo=True, max_tokens=0)
    assert [choice.text for choice in answer.choices] == [CAPITAL, SEA]
    assert answer.usage[1] == 0
    assert ask.completions(CAPITAL, echo=True, max_tokens=4).only.text.startswith(f"{CAPITAL} Paris")


def test_a_stop_text_ends_the_answer_and_is_not_in_it(ask: Any) -> None:
    choice = ask.completions(CAPITAL, max_tokens=16, stop="Paris").only
    assert (choice.text, choice.finish_reason) == (" ", "stop")
    choice = ask.completions(CAPITAL, max_tokens=16, stop=["no such words", "."]).only
    assert (choice.text, choice.finish_reason) == (" Paris", "stop")


def test_a_seed_gives_the_same_samples_again(ask: Any) -> None:
    sampled = {"temperature": 1.2, "max_tokens": 6}
    assert ask.completions(SEA, seed=1, **sampled) == ask.completions(SEA, seed=1, **sampled)
    assert ask.completions(SEA, seed=1, **sampled) != ask.completions(SEA, seed=2, **sampled)


def test_best_of_gives_the_likeliest(client: openai.OpenAI) -> None:
    parameters: dict[str, Any] = {"model": "smollm2", "prompt": SEA, "seed": 5, "temperature": 1.5, "max_tokens": 4}
    every = client.completions.create(n=4, logprobs=0, **parameters)
    best = client.completions.create(best_of=4, logprobs=0, **parameters)

    def mean(choice: Any) -> float:
        return sum(choice.logprobs.token_logprobs) / len(choice.logprobs.token_logprobs)

    assert best.choices[0].text == max(every.choices, key=mean).text
    assert best.usage is not None
    assert best.usage.completion_tokens == 16
    with pytest.raises(openai.BadRequestError) as raised:
        client.completions.create(best_of=2, stream=True, **parameters)
    assert raised.value.param == "best_of"


def test_logit_bias_and_penalties(ask: Any, plain: Any, greedy: Any) -> None:
    (paris,) = ids(plain, " Paris")
    assert "Paris" not in ask.completions(CAPITAL, max_tokens=3, logit_bias={str(paris): -100}).only.text
    assert ask.completions(SEA, max_tokens=3, logit_bias={str(paris): 100}).only.text == " Paris" * 3
    laughter = "ha ha ha ha ha ha"
    for penalties in ({"frequency_penalty": 2}, {"presence_penalty": -2}):
        expected = greedy(ids(plain, laughter), 10, **penalties)
        assert ask.completions(laughter, max_tokens=10, **penalties).only.text == expected


def test_user_is_taken(ask: Any) -> None:
    assert ask.completions(CAPITAL, user="anna", max_tokens=1).only.text == " Paris"


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(
    ("body", "param"),
    [
        *(({name: "x"}, name) for name in CompletionRequest.FIELDS.refused),
        ({"no_such_field": 1}, "no_such_field"),
        ({"logprobs": 21}, "logprobs"),
        ({"max_tokens": -2}, "max_tokens"),
        ({"best_of": 1, "n": 2}, "best_of"),
        ({"prompt": [[1, 49152]]}, "prompt"),
        ({"prompt": [[1], [-1]]}, "prompt[1][0]"),
        ({"prompt": []}, "prompt"),
        ({"prompt": {"text": "x"}}, "prompt"),
    ],
    ids=str,
)
def test_what_is_not_possible_is_named(client: openai.OpenAI, body: dict[str, Any], param: str, stream: bool) -> None:
    with pytest.raises(openai.BadRequestError) as raised:
        client.completions.create(model="smollm2", prompt=CAPITAL, max_tokens=1, stream=stream, extra_body=body)
    assert (raised.value.param, raised.value.type) == (param, "invalid_request_error")


def test_another_model_and_too_long_a_prompt(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as missing:
        client.completions.create(model="davinci", prompt=CAPITAL)
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError, match="8192") as long:
        client.completions.create(model="smollm2", prompt=[CAPITAL, "x " * 9000], max_tokens=1)
    assert (long.value.code, long.value.param) == ("context_length_exceeded", "prompt")


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(("wrong", "named"), [("word " * 9000, "context holds"), ([5, 10**6], "vocabulary")])
def test_all_prompts_are_checked_before_the_first_byte(
    client: openai.OpenAI, stream: bool, wrong: Any, named: str
) -> None:
    """Check the last of more prompts than run together: a stream that has begun cannot have another status."""
    prompts: Any = [*([[5, 6]] * 40), wrong if isinstance(wrong, list) else [5] * len(wrong.split())]
    with pytest.raises(openai.BadRequestError, match=named) as raised:
        client.completions.create(model="smollm2", prompt=prompts, max_tokens=1, stream=stream)
    assert raised.value.param == "prompt"
