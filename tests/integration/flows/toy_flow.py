"""Real Executor and real Gateway that load nothing, for tests of Jina's own start, stop and errors."""

import asyncio
import json
import time

# isort: off
import run_gpt.process._jina  # noqa: F401  (before jina)

# isort: on
from docarray import BaseDoc, DocList
from fastapi import FastAPI
from jina import Executor, Gateway, requests
from jina.serve.runtimes.servers.composite import CompositeBaseServer
from jina.serve.runtimes.servers.grpc import GRPCServer
from jina.serve.runtimes.servers.http import FastAPIBaseServer

from run_gpt.errors import ModelLoadError


class Text(BaseDoc):
    text: str = ""


class ToyExecutor(Executor):
    def __init__(self, **settings: object):
        fail, loads = settings.pop("fail", False), settings.pop("loads", False)
        self.failed = settings.pop("failed", False)
        self.finishes = settings.pop("finishes", True)
        super().__init__(**settings)
        if fail:
            raise ModelLoadError("no such file: model.gguf")
        if loads:
            print("loading", flush=True)
            time.sleep(600)

    async def drain(self, seconds: float) -> None:
        print(f"draining for {seconds:g} s", flush=True)
        if not self.finishes:
            await asyncio.sleep(seconds)

    @requests(on="/echo")
    async def echo(self, docs: DocList[Text], **_: object) -> DocList[Text]:
        return docs


class _Http(FastAPIBaseServer):
    @property
    def app(self) -> FastAPI:
        """App whose `/ready` returns the addresses of the executors that this gateway got."""
        app = FastAPI()
        app.get("/ready")(lambda: json.loads(self.runtime_args.deployments_addresses))
        return app


class ToyGateway(Gateway, CompositeBaseServer):
    def __init__(self, **settings: object):
        super().__init__(**settings)
        grpc, http = self._server_kwargs
        self._servers = [GRPCServer(**grpc), _Http(**http)]

    @property
    def servers(self) -> list[object]:
        return self._servers
