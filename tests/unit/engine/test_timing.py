"""Without these tests an answer's timings could be wrong, or could not add up."""

import pytest
from test_engine import ScriptedRunner, decode
from test_engine_metrics import Driven, a_request

from run_gpt.config import EngineConfig
from run_gpt.engine.engine import BatchEngine
from run_gpt.engine.plan import Sampled
from run_gpt.engine.timing import Timing


def parts(timing):
    return (timing.queue_seconds, timing.prefill_seconds, timing.decode_seconds, timing.total_seconds)


def rows_of(driven, request, now):
    driven.add(request, now)
    return list(driven.scheduler.waiting)


def test_the_time_of_a_sequence_is_queue_then_prefill_then_decode():
    driven = Driven()
    [row] = rows_of(driven, a_request("a", tokens=3), 10.0)
    driven.step(10.25, 11.0, [Sampled(5)])
    driven.step(11.0, 11.5, [Sampled(6)])
    driven.step(11.5, 13.0, [Sampled(7)])
    assert row.timing == Timing(10.0, 10.25, 11.0, 13.0)
    assert parts(row.timing) == (0.25, 0.75, 2.0, 3.0)


def test_what_gives_no_token_has_a_prefill_and_no_decode():
    driven = Driven()
    [row] = rows_of(driven, a_request("a", tokens=0), 0.0)
    driven.step(0.5, 1.5, [Sampled(5)])
    assert parts(row.timing) == (0.5, 1.0, 0.0, 1.5)


def test_drafts_count_for_the_sequence_that_they_were_for():
    driven = Driven(cheap_tokens=8)
    [row] = rows_of(driven, a_request("a", prompt=[1, 2, 3, 4, 5, 6] * 3, tokens=20), 0.0)
    driven.step(0.0, 1.0, [Sampled(1)])
    plan = driven.scheduler.plan()
    [run] = plan.runs
    assert len(run.drafted) > 1
    right = run.drafted[0]
    driven.metrics.step(plan, driven.scheduler.commit(plan, [[Sampled(right), Sampled(99)]]), 1.0, 2.0)
    assert (row.timing.drafted, row.timing.accepted) == (len(run.drafted), 1)


def test_several_sequences_wait_until_the_first_of_them_runs_and_end_with_the_last():
    """Check the combined timing of a request. Sums or means of its parts would be longer than the request."""
    one, other = Timing(1.0, 2.0, 4.0, 9.0, 3, 1), Timing(1.0, 5.0, 6.0, 11.0, 4, 2)
    both = Timing.of_all([one, other])
    assert both == Timing(1.0, 2.0, 4.0, 11.0, 7, 3)
    assert parts(both) == (1.0, 2.0, 7.0, 10.0)
    assert Timing.of_all([Timing(1.0, 2.0, None, 3.0), Timing(1.0, 2.5, None, 4.0)]) == Timing(1.0, 2.0, None, 4.0)


@pytest.fixture
def engine():
    engine = BatchEngine(ScriptedRunner(), decode, EngineConfig(max_waiting=4, max_running=3))
    yield engine
    engine.shutdown()


@pytest.mark.parametrize("more", [{}, {"sequences": 3}, {"num_beams": 2, "sequences": 2}, {"tokens": 0}], ids=str)
async def test_the_last_event_of_each_sequence_has_its_timing_and_no_other_event_has(engine, more):
    timings = {}
    async for event in engine.submit(a_request("a", **more)):
        assert (event.timing is None) == (event.finish_reason is None)
        if event.timing is not None:
            timings[event.index] = event.timing
    assert list(timings) == list(range(more.get("sequences", 1)))
    for timing in timings.values():
        queue, prefill, decoded, total = parts(timing)
        assert min(queue, prefill, decoded) >= 0
        assert queue + prefill + decoded == pytest.approx(total)
        assert 0 < total < 10
    if "num_beams" in more:
        assert prefill == 0, "beam search has its prompt in the search"
