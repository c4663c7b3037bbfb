"""Models of a server, listed and changed by clients: the same over gRPC and HTTP, in Python and by commands."""

import asyncio
import threading
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from run_gpt.api.answers import Status
from run_gpt.api.models import ModelState
from run_gpt.cli import main
from run_gpt.cli.app import app
from run_gpt.client import Client
from run_gpt.errors import DeadlineExceeded, InternalError, InvalidRequest, ModelNotFound, Unavailable
from run_gpt.gateway import models as module
from run_gpt.gateway.pool import ReplicaPool

GIGABYTES = 3_000_000_000
"""A number too large for the integers of a Jina document."""


class SleepingReplica:
    """A replica whose model is not in memory. A load waits for `may_end`."""

    address, model, leaving = "scripted:1", "tiny", False

    def __init__(self):
        about = {"model": self.model, "running": 0, "waiting": 0, "context_length": 512, "memory": GIGABYTES}
        self.status = Status(state="unloaded", **about)
        self.may_end, self.fails, self.loads_begun = threading.Event(), None, 0
        self.may_end.set()

    @property
    def state(self):
        return self.status.state

    @property
    def loads(self):
        return self.state in ("unloaded", "loading")

    @property
    def takes_requests(self):
        return self.state == "ready"

    def says(self, **fields):
        self.status = self.status.model_copy(update=fields)

    async def load(self):
        self.loads_begun += 1
        self.says(state="loading", step="Reading tiny", done=GIGABYTES - 1, total=GIGABYTES, why=None)
        await asyncio.sleep(0.1)  # so that there is progress to report
        while not self.may_end.is_set():
            await asyncio.sleep(0.01)
        self.says(state="unloaded" if self.fails else "ready", why=self.fails)

    async def unload(self):
        self.says(state="unloaded")

    def describe(self):
        return {}


@pytest.fixture
def tiny():
    return SleepingReplica()


@pytest.fixture(params=["grpc", "http"])
def url(request, tiny, serving_scripted, monkeypatch):
    """Yield the URL of each port in turn, for the scripted model and `tiny`."""
    monkeypatch.setattr(module, "PROGRESS_SECONDS", 0.005)
    pool = ReplicaPool([])
    pool.members.replicas = {"1": tiny}
    with serving_scripted(pools=[pool]) as scripted:
        yield scripted.grpc_url if request.param == "grpc" else scripted.http_url
        tiny.may_end.set()


def told(cards):
    return [(card.id, card.state, card.memory, card.max_model_len) for card in cards]


def test_a_model_is_listed_loaded_and_unloaded(url, tiny):
    asleep = [("scripted", "loaded", None, 2048), ("tiny", "unloaded", GIGABYTES, 512)]
    assert told(Client().list_models(url)) == asleep
    heard = []
    with Client().get_model("tiny", url) as model:
        state = model.load(on_progress=lambda *step: heard.append(step))
        assert (state.model, state.state, state.memory) == ("tiny", "loaded", GIGABYTES)
        assert heard[-1] == ("Reading tiny", GIGABYTES - 1, GIGABYTES)
        assert told(Client().list_models(url))[1] == ("tiny", "loaded", GIGABYTES, 512)
        heard.clear()
        assert model.load(on_progress=lambda *step: heard.append(step)).state == "loaded"
        assert (heard, tiny.loads_begun) == ([], 1)
        assert model.unload().state == "unloaded"
    assert told(Client().list_models(url)) == asleep


async def test_the_async_calls_are_the_same(url):
    async with Client().get_model("tiny", url) as model:
        assert (await model.aload()).state == "loaded"
        assert [card.state for card in await Client().alist_models(url)] == ["loaded", "loaded"]
        assert (await model.aunload()).state == "unloaded"


def test_what_goes_wrong_is_an_error_of_its_own(url, tiny):
    with Client().get_model("nobody", url) as model:
        for call in (model.load, model.unload):
            with pytest.raises(ModelNotFound, match="'scripted', 'tiny'"):
                call()
    with Client().get_model(endpoint=url) as model:
        for call in (model.load, model.unload):
            with pytest.raises(InvalidRequest, match="model_name"):
                call()
    tiny.fails = "its weights are damaged"
    with Client().get_model("tiny", url) as model:
        with pytest.raises(Unavailable, match="the model tiny cannot be loaded: its weights are damaged"):
            model.load()
        assert told(Client().list_models(url))[1][1] == "failed"
        tiny.fails = None
        assert model.load().state == "loaded"
    with pytest.raises(Unavailable, match="closed"):
        model.load()


def test_who_waits_no_longer_does_not_end_the_load_and_cannot_unload_meanwhile(url, tiny):
    tiny.may_end.clear()
    with Client().get_model("tiny", url) as model:
        with pytest.raises(DeadlineExceeded):
            model.load(timeout=0.3)
        with pytest.raises(Unavailable, match=r"is being loaded|in use"):
            model.unload()
        tiny.may_end.set()
        assert model.load().state == "loaded"
    assert tiny.loads_begun == 1


async def test_a_load_without_a_final_event_is_no_success():
    async def stream(request, timeout, request_id):
        yield ModelState(id="1", created=1, model="tiny", state="loading")

    model = Client().get_model("tiny", "http://127.0.0.1:9")
    model._transport = SimpleNamespace(stream=stream)
    with pytest.raises(InternalError, match="before the model tiny was loaded"):
        await model.aload()


def rungpt(*arguments):
    done = CliRunner().invoke(app, ["models", *arguments])
    assert done.exit_code == 0, done.output
    return done


def test_the_commands_show_and_change_it(url):
    lines = [line.split() for line in rungpt("served", "--endpoint", url).stdout.splitlines()]
    assert lines == [
        ["name", "state", "memory", "context"],
        ["scripted", "loaded", "-", "2,048"],
        ["tiny", "unloaded", "3.0", "GB", "512"],
    ]
    done = rungpt("load", "tiny", "--endpoint", url)
    assert done.stdout == "tiny is loaded, and takes 3.0 GB at most\n"
    assert done.stderr.endswith("Reading tiny ...\n")
    assert rungpt("unload", "tiny", "--endpoint", url).stdout == "tiny is unloaded\n"


def test_a_command_that_fails_is_one_line(url, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["rungpt", "models", "unload", "nobody", "--endpoint", url])
    with pytest.raises(SystemExit) as ended:
        main()
    out, err = capsys.readouterr()
    assert (ended.value.code, out, err.count("\n")) == (1, "", 1)
    assert "'nobody' is not served here" in err
