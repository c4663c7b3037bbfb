"""The choice of replicas: a conversation stays where its prefix is cached, and no replica is overloaded for it."""

from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from run_gpt.api.embeddings import EmbedRequest
from run_gpt.api.schema import ChatRequest, GenerateRequest
from run_gpt.gateway.affinity import (
    BLOCK,
    MOST_CHARACTERS,
    MOST_IDS,
    MOST_WORTH,
    Affinity,
    choose,
    digests_of,
    prompt_text,
    worth,
)

TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}


@dataclass(eq=False)
class Candidate:
    in_flight: int = 0
    cache: object = field(default_factory=object)


class Gateway:
    """Sender of requests one after the other, as the pool sends them."""

    def __init__(self, *in_flight: int, capacity: int = 10_000):
        self.replicas = [Candidate(n) for n in in_flight]
        self.affinity = Affinity(capacity)
        self.turn = 0

    def send(self, text: str) -> int:
        digests = digests_of(text)
        chosen = choose(self.replicas, self.affinity.matched(digests), self.turn)
        self.turn += 1
        self.affinity.note(digests, chosen.cache)
        return self.replicas.index(chosen)


def conversation(name: str, turns: int) -> str:
    return "".join(f"turn {turn} of the conversation {name}. ".ljust(1500, ".") for turn in range(turns))


def test_without_a_known_beginning_the_least_busy_is_chosen_and_ties_take_turns() -> None:
    gateway = Gateway(1, 0, 0)
    assert [gateway.send("short") for _ in range(4)] == [1, 2, 1, 2]


def test_conversations_that_take_turns_each_stay_where_they_began() -> None:
    """A chat that moves to another replica prefills its whole history again."""
    gateway = Gateway(0, 0, 0)
    first = {name: gateway.send(conversation(name, 1)) for name in "abcdef"}
    assert sorted(first.values()) == [0, 0, 1, 1, 2, 2]
    for turns in range(2, 8):
        for name in "fbdace":
            assert gateway.send(conversation(name, turns)) == first[name]


def test_a_short_beginning_only_breaks_ties() -> None:
    gateway = Gateway(0, 0)
    system = "You are helpful. ".ljust(500)
    home = gateway.send(system + "one")
    assert gateway.send(system + "two") == home
    gateway.replicas[home].in_flight = 1
    assert gateway.send(system + "three") == 1 - home


def test_a_long_conversation_stays_on_a_busier_replica_but_not_on_an_overloaded_one() -> None:
    gateway = Gateway(0, 0)
    home = gateway.send(conversation("a", 4))  # 6,000 characters: worth nearly three requests
    gateway.replicas[home].in_flight = 2
    assert gateway.send(conversation("a", 5)) == home
    gateway.replicas[home].in_flight = 9
    assert gateway.send(conversation("a", 50)) == 1 - home
    gateway.replicas[home].in_flight = 0
    assert gateway.send(conversation("a", 51)) == 1 - home, "that one has now seen more of it"


def test_beyond_the_cap_the_longer_beginning_still_counts() -> None:
    """Two conversations about one long document must not swap their replicas."""
    gateway = Gateway(0, 0)
    document = conversation("document", 20)
    assert worth(len(document)) == MOST_WORTH
    first = gateway.send(document + conversation("a", 1))
    gateway.replicas[first].in_flight = 9
    assert gateway.send(document + conversation("b", 1)) == 1 - first
    gateway.replicas[first].in_flight = 0
    for turns in range(2, 6):
        assert gateway.send(document + conversation("a", turns)) == first
        assert gateway.send(document + conversation("b", turns)) == 1 - first


def test_a_replica_that_lost_its_cache_is_one_that_never_saw_it() -> None:
    gateway = Gateway(0, 0)
    home = gateway.send(conversation("a", 4))
    gateway.replicas[home].cache = object()
    gateway.replicas[home].in_flight = 1
    assert gateway.send(conversation("a", 5)) == 1 - home


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 40_000)), min_size=1, max_size=8), st.integers(0, 100))
def test_loads_differ_by_the_cap_at_most(loads: list[tuple[int, int]], turn: int) -> None:
    """No replica that gets the next request has MOST_WORTH more than another, for any texts that it has seen."""
    replicas = [Candidate(in_flight) for in_flight, _ in loads]
    matched: dict[object, int] = {r.cache: seen for r, (_, seen) in zip(replicas, loads, strict=True) if seen}
    chosen = choose(replicas, matched, turn)
    assert chosen.in_flight <= min(in_flight for in_flight, _ in loads) + MOST_WORTH


@settings(deadline=None)
@given(st.lists(st.text("ab", max_size=3), max_size=30), st.integers(1, 40))
def test_what_is_known_is_bounded_and_never_a_lie(texts: list[str], capacity: int) -> None:
    """No cache is credited with more than it was sent, and the newest text is known as far as the capacity allows."""
    affinity, caches = Affinity(capacity), [object(), object()]
    sent: dict[object, set[str]] = {cache: set() for cache in caches}
    for i, pattern in enumerate(texts):
        text = "".join(letter * BLOCK for letter in pattern)
        affinity.note(digests_of(text), caches[i % 2])
        sent[caches[i % 2]].add(text)
        assert len(affinity) <= capacity
        matched = affinity.matched(digests_of(text))
        assert matched.get(caches[i % 2], 0) == min(len(text), capacity * BLOCK)
        for cache, characters in matched.items():
            assert any(other.startswith(text[:characters]) for other in sent[cache])


@settings(deadline=None)
@given(st.text(max_size=2000), st.text(max_size=2000))
def test_a_longer_text_has_the_digests_of_its_beginning(text: str, more: str) -> None:
    digests = digests_of(text)
    assert len(digests) == len(text) // BLOCK
    assert digests_of(text + more)[: len(digests)] == digests


def test_no_text_is_so_long_that_it_costs_all_that_is_known() -> None:
    assert len(digests_of("x" * (3 * MOST_CHARACTERS))) == MOST_CHARACTERS // BLOCK


messages = st.lists(st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant"]), "content": st.text()}))


@settings(deadline=None)
@given(messages.filter(bool), messages)
def test_a_chats_earlier_turn_is_a_beginning_of_a_later_one(earlier: list[Any], later: list[Any]) -> None:
    before, after = (ChatRequest.parse({"messages": m, "tools": [TOOL]}) for m in (earlier, earlier + later))
    assert prompt_text(after).startswith(prompt_text(before))


@pytest.mark.parametrize(
    "other", [{"temperature": 0.5}, {"n": 2}, {"seed": 1}, {"stop": "x"}, {"max_tokens": 3}, {"logprobs": 1}]
)
def test_what_does_not_change_the_prompt_does_not_matter(other: dict[str, Any]) -> None:
    for kind, fields in (
        (GenerateRequest, {"prompt": "x"}),
        (ChatRequest, {"messages": [{"role": "user", "content": "x"}]}),
    ):
        assert prompt_text(kind.parse(fields)) == prompt_text(kind.parse(fields | other))  # type: ignore[attr-defined]


def test_what_changes_the_prompt_matters() -> None:
    """A replica cannot reuse the same words after another adapter or other tools."""
    chat: dict[str, Any] = {"messages": [{"role": "user", "content": "x"}]}
    variants: list[dict[str, Any]] = [
        {},
        {"adapter": "a"},
        {"tools": [TOOL]},
        {"tools": [TOOL], "parallel_tool_calls": False},
        {"tools": [TOOL], "messages": [{"role": "system", "content": "x"}]},
    ]
    assert len({prompt_text(ChatRequest.parse(chat | variant)) for variant in variants}) == len(variants)
    assert prompt_text(ChatRequest.parse(chat | {"tools": [TOOL], "tool_choice": "none"})) == prompt_text(
        ChatRequest.parse(chat)
    )


def test_prompts_of_ids_and_requests_without_a_prompt() -> None:
    ids = list(range(1000, 1400))
    short, long = (prompt_text(GenerateRequest(prompt=ids[:n])) for n in (200, 400))
    assert long.startswith(short)
    assert prompt_text(EmbedRequest.parse({"texts": "x"})) == ""


def test_the_same_text_in_another_space_is_another_text() -> None:
    """A replica reuses nothing of another key, so its prompts are no reason to choose it."""
    text = "x" * (4 * BLOCK)
    spaces = ["", "alice/", "bob/", "alice/salt"]
    assert len({digest for space in spaces for digest in digests_of(text, space)}) == 4 * len(spaces)
    assert digests_of(text, "alice/") == digests_of(text, "alice/")


def test_requests_with_the_same_key_go_to_the_same_replica() -> None:
    """Short prompts have no prefix to be known by, and a key must not mix the prefixes of two clients."""
    affinity, replicas = Affinity(), [Candidate(), Candidate()]
    text = "x" * 3 * BLOCK
    affinity.note(digests_of("short", "", "a"), replicas[1].cache)
    for turn in range(4):
        assert choose(replicas, affinity.matched(digests_of("other", "", "a")), turn) is replicas[1]
    assert affinity.matched(digests_of("other", "", "b")) == {}
    assert affinity.matched(digests_of("other", "tenant/", "a")) == {}
    affinity.note(digests_of(text, "", "a"), replicas[0].cache)
    assert affinity.matched(digests_of(text, "", "a"))[replicas[0].cache] == 4 * BLOCK
    assert not set(digests_of(text, "", "a")) & set(digests_of(text, "", "b")) & set(digests_of(text))


def test_no_more_of_a_prompt_is_read_than_is_compared() -> None:
    """The text of a prompt is made on the event loop, which 4 MB of messages would hold."""
    text, ids = "x" * (3 * MOST_CHARACTERS), list(range(100_000, 100_000 + 2 * MOST_IDS))
    messages = [{"role": "user", "content": text[: MOST_CHARACTERS // 2]}] * 8
    for request in (
        GenerateRequest(prompt=text),
        GenerateRequest(prompt=ids[: 2**17]),
        ChatRequest.parse({"messages": messages}),
    ):
        made = prompt_text(request)
        assert MOST_CHARACTERS * 0.8 < len(made) < MOST_CHARACTERS * 1.1
        assert len(digests_of(made)) <= MOST_CHARACTERS // BLOCK
