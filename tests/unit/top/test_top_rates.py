"""Without these tests rates and quantiles of `rungpt top` could differ from those of Prometheus for the same server."""

import itertools
import math
import random
import shutil
import subprocess

import pytest
import yaml

from run_gpt.top.rates import fell, increases, quantile, summed

INF = math.inf


def series(**values):
    """Return a series by replica: `series(a=1)` is a counter of replica a."""
    return {frozenset({("replica", name)}): value for name, value in values.items()}


def test_a_counter_that_fell_has_begun_again_at_zero():
    """Otherwise a restarted server would show a negative rate, or none."""
    before, after = series(a=100, b=5), series(a=3, b=7)
    assert increases(before, after) == series(a=3, b=2)
    assert fell(before, after) == list(series(a=0))


def test_a_new_series_counts_from_zero_only_where_its_owner_was_known():
    """A first error counts as one error. Tokens of a replica that is seen again after an hour do not count as new."""
    known = list(series(a=0))
    assert increases({}, series(a=2, b=9000), known.__contains__) == series(a=2, b=0)


def test_a_removed_series_counts_nothing():
    assert increases(series(a=1, b=2), series(a=4)) == series(a=3)


def test_sums_are_by_the_labels_that_are_named():
    values = {
        frozenset({("code", "a"), ("key", "x")}): 1.0,
        frozenset({("code", "a"), ("key", "y")}): 2.0,
        frozenset({("key", "y")}): 4.0,
    }
    assert summed(values, "code") == {("a",): 3.0, ("",): 4.0}


@pytest.mark.parametrize(
    ("buckets", "q", "expected"),
    [
        ([(1, 0), (2, 10), (INF, 10)], 0.5, 1.5),  # evenly within a bucket
        ([(1, 10), (2, 10), (INF, 10)], 0.5, 0.5),  # the lowest begins at 0
        ([(1, 5), (2, 5), (INF, 10)], 0.9, 2),  # beyond the last bound
        ([(-1, 10), (2, 10), (INF, 10)], 0.5, -1),  # a lowest bucket below 0
        ([(1, 10), (2, 8), (INF, 20)], 0.5, 1),  # counts that fall are taken as equal
        ([(INF, 10), (2, 10), (1, 0)], 0.5, 1.5),  # in any order
        ([(1, 0), (INF, 0)], 0.5, None),  # no observation
        ([(1, 5), (2, 6)], 0.5, None),  # no infinite bucket
        ([(INF, 6)], 0.5, None),
        ([], 0.5, None),
    ],
)
def test_quantile(buckets, q, expected):
    assert quantile(q, buckets) == expected


@pytest.mark.skipif(not shutil.which("promtool"), reason="promtool, of Debian's package prometheus, is not here")
def test_quantiles_are_those_of_promql(tmp_path):
    """Random histograms, compared with the evaluation of Prometheus itself."""
    made = random.Random(7)
    inputs, cases = [], []
    for number in range(40):
        bounds = sorted(made.sample([0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5], made.randint(1, 8)))
        counts = list(itertools.accumulate(made.choice([0, 0, 1, 3, 10]) for _ in range(len(bounds) + 1)))
        if not counts[-1]:
            continue
        buckets = list(zip([*bounds, INF], map(float, counts), strict=True))
        for bound, count in buckets:
            name = "+Inf" if bound == INF else repr(bound)
            inputs.append({"series": f'h_bucket{{n="{number}",le="{name}"}}', "values": f"{count:.0f}"})
        for q in (0.1, 0.5, 0.9, 0.99, 1.0):
            sample = {"labels": f'{{n="{number}"}}', "value": quantile(q, buckets)}
            expression = f'histogram_quantile({q}, sum by (le, n) (h_bucket{{n="{number}"}}))'
            cases.append({"expr": expression, "eval_time": "0m", "exp_samples": [sample]})
    tests = [{"interval": "1m", "input_series": inputs, "promql_expr_test": cases}]
    (tmp_path / "quantiles.yml").write_text(yaml.safe_dump({"rule_files": [], "tests": tests}))
    command = ["promtool", "test", "rules", str(tmp_path / "quantiles.yml")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(cases) > 100
