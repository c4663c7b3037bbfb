"""A real Prometheus on a running server: each query of the dashboard has a result, and `rungpt top` reads the same.

Without these tests users would discover a wrong query as an empty panel, when they need it.
"""

import json
import math
import re
import shutil
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
import yaml

ROOT = Path(__file__).parents[2]
DASHBOARD = json.loads((ROOT / "monitoring" / "grafana" / "dashboards" / "rungpt.json").read_text())
KEYS = {"alice": "alice-key-1", "limited": "limited-key-1", "prometheus": "prometheus-key-1"}
LIMITS = {"limited": "requests=1 tokens=1000000"}
VARIABLES = {"job": ".*", "model": ".*", "replica": ".*", "__rate_interval": "10s", "__range": "1m"}
PATIENCE = 90.0
"""Seconds for all queries to have a result; on an idle machine it takes 5."""
USERS, MOST_REQUESTS, MOST_SECONDS = 7, 2000, 150.0
"""Size of the load: number of users, most requests of each user, and most seconds."""

pytestmark = pytest.mark.skipif(
    not shutil.which("prometheus"), reason="prometheus, Debian's package of that name, is not here"
)


@pytest.fixture(scope="module")
def busy(start_server, tmp_path_factory):
    """Yield a server with keys and the default model under a small load that overflows its queue."""
    keys = tmp_path_factory.mktemp("keys") / "keys"
    keys.write_text("".join(f"{name}: {key} {LIMITS.get(name, '')}\n" for name, key in KEYS.items()))
    small = ("--max-running", "2", "--max-waiting", "1", "--host", "127.0.0.1", "--api-key-file", str(keys))
    with start_server(*small) as server, load(server.http_url):
        yield server


@contextmanager
def load(url):
    """Run users who send requests until the block ends, a bounded number of times."""
    ended, deadline = threading.Event(), time.monotonic() + MOST_SECONDS

    def use(number):
        # Text that repeats, for drafts, with a common prefix, for reuse.
        prompt = "red green blue " * 12 + str(number)
        fields = {"prompt": prompt, "max_new_tokens": 16 + number, "temperature": 0}
        key = KEYS["limited" if number < 2 else "alice"]
        with httpx.Client(base_url=url, headers={"Authorization": f"Bearer {key}"}, timeout=30) as client:
            for _ in range(MOST_REQUESTS):
                status = client.post("/generate", json=fields).status_code
                assert status in (200, 429)
                if ended.wait(0.2 if status == 429 else 0.0) or time.monotonic() > deadline:
                    return

    with ThreadPoolExecutor(USERS) as pool:
        users = [pool.submit(use, number) for number in range(USERS)]
        try:
            yield
        finally:
            ended.set()
    for user in users:
        user.result()


@pytest.fixture
def prometheus(busy, tmp_path, free_ports):
    """Run monitoring/prometheus.yml with another target and shorter intervals; yield the URL of the Prometheus."""
    config = yaml.safe_load((ROOT / "monitoring" / "prometheus.yml").read_text())
    config["global"] |= {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"}
    config["scrape_configs"][0]["static_configs"][0]["targets"] = [f"127.0.0.1:{busy.http_port}"]
    (tmp_path / "prometheus.yml").write_text(yaml.safe_dump(config))
    (tmp_path / "key").write_text(KEYS["prometheus"])
    shutil.copy(ROOT / "monitoring" / "rules.yml", tmp_path)
    with running(tmp_path, free_ports(1)[0]) as url:
        yield url


@contextmanager
def running(folder, port):
    """Run Prometheus with the configuration in this folder."""
    command = ["prometheus", f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data"]
    command += [f"--web.listen-address=127.0.0.1:{port}", "--log.level=warn"]
    log = folder / "prometheus.log"
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT)
    try:
        url = f"http://127.0.0.1:{port}"
        wait_until(lambda: process.poll() is not None or answers(f"{url}/-/ready"), log.read_text)
        assert process.poll() is None, log.read_text()
        yield url
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def wait_until(condition, describe):
    """Wait until the condition holds. Fails after PATIENCE, with the text of `describe`."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > deadline:
            pytest.fail(describe())
        time.sleep(0.25)  # between two polls of the condition


def answers(url):
    try:
        return httpx.get(url, timeout=5).status_code == 200
    except httpx.TransportError:
        return False  # not listening yet


def asked(url, path, **parameters):
    """Return Prometheus' answer to a query."""
    response = httpx.get(f"{url}/api/v1/{path}", params=parameters, timeout=10)
    assert response.status_code == 200, response.text
    return response.json()["data"]


def filled(query):
    """Return the query as Grafana would send it, with `All` chosen everywhere."""
    return re.sub(r"\$(\w+)", lambda match: VARIABLES[match[1]], query)


def has_result(url, query):
    """Return True when a result is a number."""
    result = asked(url, "query", query=filled(query))["result"]
    return any(not math.isnan(float(series["value"][1])) for series in result)


def test_each_query_of_the_dashboard_has_a_result(busy, prometheus):
    panels = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
    missing = {(panel["title"], target["expr"]) for panel in panels for target in panel["targets"]}
    assert len(missing) > 50

    def none_is_missing():
        missing.difference_update({one for one in missing if has_result(prometheus, one[1])})
        return not missing

    def describe():
        targets = asked(prometheus, "targets")["activeTargets"]
        empty = "".join(f"\n{title}: {filled(query)}" for title, query in sorted(missing))
        return f"the scrape: {targets[0]['lastError'] or 'well'}; without a result:{empty}"

    wait_until(none_is_missing, describe)
    check_variables(busy, prometheus)
    check_rules(prometheus)


def readiness(busy):
    """Return what /ready shows to a key."""
    return httpx.get(f"{busy.http_url}/ready", headers={"Authorization": f"Bearer {KEYS['alice']}"}).json()


def check_variables(busy, url):
    """Check the values in Grafana's lists."""
    found = {}
    for variable in DASHBOARD["templating"]["list"]:
        if match := re.fullmatch(r"label_values\((.*), (\w+)\)", variable.get("definition", "")):
            found[variable["name"]] = asked(url, f"label/{match[2]}/values", **{"match[]": filled(match[1])})
    ready = readiness(busy)
    replicas = [replica["address"] for replica in ready["replicas"]["each"]]
    assert found == {"job": ["rungpt"], "model": [ready["model"]], "replica": replicas}


def check_rules(url):
    """Check that no rule fails, and that a working server fires no alert for being down."""
    rules = asked(url, "rules")["groups"][0]["rules"]
    assert {rule["health"] for rule in rules} == {"ok"}, rules
    firing = {rule["name"] for rule in rules if rule.get("state") == "firing"}
    assert not firing & {"RunGPTUnreachable", "RunGPTNoReadyReplica", "RunGPTReplicaRestarts"}


def test_top_shows_the_load_of_a_real_server(busy, monkeypatch):
    monkeypatch.setenv("RUNGPT_API_KEY", KEYS["alice"])
    command = [sys.executable, "-m", "run_gpt.cli", "top", "--once", "--interval", "2", "--url", busy.http_url]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    assert done.returncode == 0, done.stderr
    text = done.stdout
    assert "1/1 replicas ready" in text
    for name in ("requests/s", "finished/s"):
        assert float(re.search(rf"^{name}\s+([\d.]+)", text, re.MULTILINE)[1]) > 0, text
    assert float(re.search(r"generated ([\d.]+)", text)[1]) > 0, text
    assert re.search(r"^first token\s+p50 [\d.]+ ms   p90 [\d.]+ ms\s*$", text, re.MULTILINE), text
    assert re.search(r"^errors\s.*queue_full \d+", text, re.MULTILINE), text
    replica = readiness(busy)["replicas"]["each"][0]["address"]
    row = re.search(rf"^{re.escape(replica)}\s+ready\s+(.*)$", text, re.MULTILINE)[1].split()
    running, _, tokens, slots, _, step, batch, restarts = row
    assert float(tokens) > 0
    assert 0 <= int(running) <= 2
    assert slots.endswith("/2")
    assert float(step) > 0
    assert float(batch) >= 1
    assert restarts == "0"
