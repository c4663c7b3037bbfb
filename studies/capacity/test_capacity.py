"""Tests of the capacity study: with a wrong simulation users would plan a cluster of the wrong size."""

import math
import random
from dataclasses import replace
from typing import Any

import pytest

from run_gpt.engine.plan import Sampled
from run_gpt.engine.request import Request as EngineRequest
from run_gpt.engine.scheduler import Scheduler
from run_gpt.engine.text import TextStream
from scripts.document_tables import with_tables
from studies.capacity import __main__ as capacity
from studies.capacity import paper, simulation, steps
from studies.capacity import replica as replicas
from studies.capacity import table as tables
from studies.capacity.costs import Costs
from studies.capacity.measure_steps import content_of
from studies.capacity.users import Workload

MODEL = steps.StepModel(base=2e-3, few=5e-4, row=8e-4, many=6e-4, context=5e-7, prompt=8e-4, pair=1e-7)
COSTS = Costs(gateway_request=4e-3, gateway_event=3e-4, gateway_probe=1e-3, executor_probe=1e-3)
WORKLOAD = Workload()
PAPER_COSTS = Costs(
    gateway_probe=1e-3, executor_probe=1e-3, choice=1e-7, channel_bytes=20_000, channel_files=1.0, ready_seconds=5.0
)


def cluster(**changes: Any) -> simulation.Cluster:
    return replace(simulation.Cluster(MODEL, costs=COSTS), **changes)


def run(
    users: int, seconds: float = 60.0, seed: int = 0, workload: Workload = WORKLOAD, **changes: Any
) -> simulation.Run:
    return simulation.Simulation(cluster(**changes), workload, users=users, seed=seed).run(seconds, warm_up=20.0)


def test_a_run_can_be_had_again() -> None:
    """Without this two runs of the script would make different tables."""
    one, same, other = (tables.summary_of(run(12, seed=seed, replicas=2)) for seed in (3, 3, 4))
    assert one == same != other


@pytest.mark.parametrize("users", [1, 40, 300])
@pytest.mark.parametrize("gateways", [1, 3])
def test_each_request_ends_once(users: int, gateways: int) -> None:
    """If requests were lost, the table would promise latencies that no user gets."""
    config = replicas.ReplicaConfig(max_running=8, max_waiting=4)
    done = run(users, replica=config, replicas=2, gateways=gateways, sticky=False)
    assert done.sent == done.ended > 0
    for request in done.requests:
        answered = not math.isnan(request.first)
        assert answered != request.refused
        assert request.end >= (request.first if answered else request.sent)
    assert any(request.refused for request in done.requests) == (users == 300)


def test_conversations_that_come_at_a_rate_all_leave() -> None:
    done = simulation.Simulation(cluster(), WORKLOAD, rate=0.3, seed=1).run(200.0)
    assert done.sent == done.ended > 100


@pytest.mark.parametrize(("users", "count"), [(5, 1), (40, 1), (60, 2)])
def test_littles_law_holds(users: int, count: int) -> None:
    """Little's law: requests in the system are arrivals per second times their stay; else time is miscounted."""
    done = run(users, seconds=200.0, replicas=count)
    stay = sum(request.end - request.sent for request in done.requests)
    assert done.in_system == pytest.approx(stay / done.seconds, rel=0.08)


def test_alone_the_first_token_takes_what_the_prompt_takes() -> None:
    """The one case with a known answer; if it is off, all other figures are."""
    alone = replace(WORKLOAD, turns=1.0, system_tokens=700)
    done = run(1, seconds=300.0, workload=alone, costs=Costs())
    assert len(done.requests) > 5
    for request in done.requests[1:]:  # the first one has no system prompt to reuse
        wanted = MODEL.prefill(request.prompt_tokens, 512, request.cached_tokens)
        assert request.first - request.sent == pytest.approx(wanted)
        assert request.cached_tokens == 700


@pytest.mark.parametrize("policy", ["least-busy", "affinity"])
def test_more_replicas_serve_a_crowd_better(policy: str) -> None:
    """More replicas give more and faster text. The first token may be later, where a conversation changes replicas."""
    slow = MODEL.slower(4.0)
    one, two, four = (tables.summary_of(run(60, replicas=n, policy=policy, steps=slow)) for n in (1, 2, 4))
    assert one.tokens_per_second < two.tokens_per_second < four.tokens_per_second
    assert one.stream_rate < two.stream_rate < four.stream_rate


def test_more_replicas_never_serve_fewer_users() -> None:
    """Otherwise the table would say that another replica serves fewer users."""
    target, slow = tables.Target(ttft=5.0, rate=4.0), MODEL.slower(5.0)
    brief = replace(WORKLOAD, think_seconds=4.0, turns=3.0)
    most = [tables.most_users(cluster(steps=slow, replicas=count), brief, target, 7 * count)[0] for count in (1, 2)]
    assert 0 < most[0] < most[1]


def test_a_conversation_that_stays_waits_less() -> None:
    """Affinity helps conversations with long prefixes and many turns; users would pay for it with later tokens."""
    long = replace(WORKLOAD, turns=8.0, system_tokens=20, question_tokens=150.0)
    means = {}
    for policy in ("least-busy", "affinity"):
        done = run(40, seconds=120.0, workload=long, replicas=4, policy=policy)
        means[policy] = sum(request.first - request.sent for request in done.requests) / len(done.requests)
    assert means["affinity"] < 0.8 * means["least-busy"]


def test_probes_take_their_share_of_gateways_and_replicas() -> None:
    dear = replace(COSTS, gateway_probe=0.1, executor_probe=0.02)
    quiet, busy = (tables.summary_of(run(20, replicas=4, gateways=4, costs=costs)) for costs in (COSTS, dear))
    assert busy.ttft_p50 > 1.2 * quiet.ttft_p50


def test_a_gateway_that_is_too_slow_merges_events() -> None:
    """The real gateway merges events; without that a slow gateway would seem to lag further and further behind."""
    dear = replace(COSTS, gateway_event=0.02)
    done = run(30, costs=dear)
    seen = tables.summary_of(done)
    assert sum(weight for _, weight in done.gaps) < 0.5 * seen.tokens_per_second * done.seconds
    assert seen.ttft_p90 < 5.0


def test_the_simulated_replica_plans_what_the_scheduler_plans() -> None:
    """If the scheduler's rules change, the table must change with them."""
    config = replicas.ReplicaConfig(max_running=6, max_waiting=50, max_step_tokens=64)
    real = Scheduler(max_running=6, max_waiting=50, max_step_tokens=64, end_ids=(), new_text=_text, reuse_prefixes=True)
    simulated = replicas.Replica(config)
    rng = random.Random(5)
    for number in range(40):
        prompt, answer = rng.randint(2, 200), rng.randint(1, 20)
        ids = (number, *rng.choices(range(1000, 9000), k=prompt - 1))
        real.add(EngineRequest(id=str(number), prompt_ids=ids, max_new_tokens=answer))
        assert simulated.add(replicas.Row(None, (number, 0), prompt, answer, shared=0))
        for _ in range(rng.randint(0, 12)):
            assert _real_step(real) == _simulated_step(simulated)
    while real.has_work:
        assert _real_step(real) == _simulated_step(simulated)
    assert simulated.begin() is None
    assert simulated.rows == simulated.context == simulated.running == 0


def _text(request: EngineRequest) -> TextStream:
    return TextStream(lambda ids: "", request.prompt_ids, request.stop)


def _real_step(scheduler: Scheduler) -> tuple[int, ...]:
    plan = scheduler.plan()
    content = content_of(plan)
    scheduler.commit(plan, [[Sampled(7)] for run in plan.runs if run.num_sampled])
    return content.rows, content.row_context, content.prompt_tokens, content.prompt_pairs


def _simulated_step(replica: replicas.Replica) -> tuple[int, ...]:
    content = replica.begin()
    if content is None:
        return 0, 0, 0, 0
    replica.end()
    return tuple(content)


def test_a_replica_keeps_what_its_memory_holds_and_forgets_the_oldest() -> None:
    replica = replicas.Replica(replicas.ReplicaConfig(max_cache_tokens=300))
    for user in (1, 2, 3):
        assert replica.add(replicas.Row(None, (user, 0), 90, 10, shared=0))
        while replica.begin():
            replica.end()
    again = replicas.Row(None, (1, 0), 120, 10, shared=0)
    assert replica.add(again)
    while replica.begin():
        replica.end()
    assert again.cached == 99
    assert (2, 0) not in replica.kept


def test_a_fit_finds_the_prices_and_passes_over_disturbed_steps() -> None:
    """Steps that another program slowed must not make the model slow."""
    rng, made = random.Random(1), []
    for _ in range(400):
        rows, tokens = rng.choice((0, 1, 2, 4, 9, 16, 40, 64)), rng.choice((0, 0, 60, 300, 512))
        if rows or tokens:
            contents = (rows, rows * rng.randint(20, 2000), tokens, steps.pairs(rng.randint(0, 1500), tokens))
            noise = rng.uniform(0.98, 1.02) * (3.0 if rng.random() < 0.05 else 1.0)
            made.append(steps.Step(*contents, seconds=noise * MODEL.seconds(*contents)))
    fitted = steps.fit(made)
    for name in ("base", "few", "row", "many", "context", "prompt", "pair"):
        assert getattr(fitted.model, name) == pytest.approx(getattr(MODEL, name), rel=0.15), name
    assert max(error.median for error in fitted.errors) < 0.05


def test_a_price_is_never_negative() -> None:
    made = [steps.Step(rows, 100 * rows, 0, 0, seconds=0.01 - 1e-5 * rows) for rows in range(1, 65)]
    assert min(vars(steps.fit(made).model).values()) == 0.0


def point(users: int = 30, work: float = 0.099) -> tables.Point:
    seen = tables.Summary(100, 0, 200.0, 0.1, 0.3, 0.02, 0.03, 25.0, 0.9)
    return tables.Point(1, users, 1, 0.002, 0.002, True, seen, gateway_work=work)


def test_probes_end_the_growth_of_one_group() -> None:
    """Users who plan one group of 1,000 replicas must see that no number of gateways suffices."""
    assert paper.group(PAPER_COSTS, point(), 100).gateways == 20
    assert paper.group(PAPER_COSTS, point(), 1000).gateways is None
    assert "none suffices" in paper.growth_table(PAPER_COSTS, point(), 2e9)


def test_dns_answers_have_the_sizes_of_the_standard() -> None:
    assert paper.dns_way(1) == "UDP"
    assert paper.dns_way(10000).startswith("none")
    most = paper.dns_most(65535)
    assert paper.dns_bytes(most) <= 65535 < paper.dns_bytes(most + 1)


def test_a_cell_keeps_every_bound() -> None:
    size = paper.cell_size(PAPER_COSTS, point())
    assert size & (size - 1) == 0
    assert all(size <= most for most in paper.bounds(PAPER_COSTS, point()).values())
    assert f"| replicas in a cell | {size} |" in paper.cells_table(PAPER_COSTS, point())


def test_what_is_assumed_is_named_in_full() -> None:
    """Without this a misspelt assumption would be replaced by the default."""
    step = {"base": 0.01, "few": 0.0, "row": 1e-4, "many": 1e-4, "context": 0.0, "prompt": 3e-5, "pair": 0.0}
    assumed = capacity.assumed_cluster(cluster(), {"name": "a GPU", "step": step, "max_running": 256})
    assert (assumed.steps.base, assumed.replica.max_running) == (0.01, 256)
    with pytest.raises(SystemExit, match="max_runing"):
        capacity.assumed_cluster(cluster(), {"step": step, "max_runing": 256})
    with pytest.raises(SystemExit, match="step model has"):
        capacity.assumed_cluster(cluster(), {"step": {"base": 0.01}})


@pytest.mark.parametrize("name", capacity.TABLES)
def test_each_table_has_its_place_in_the_document(name: str) -> None:
    """`--write` after minutes of measuring must not fail for a missing line."""
    made = with_tables(capacity.DOCUMENT, "studies/capacity", {name: lambda: "made"})
    assert f"<!-- {name}: made by studies/capacity -->\nmade\n" in made


def test_quantiles_count_weights() -> None:
    assert tables.quantile([(3.0, 1), (1.0, 8), (2.0, 1)], 0.9) == 2.0
    assert math.isnan(tables.quantile([], 0.5))
