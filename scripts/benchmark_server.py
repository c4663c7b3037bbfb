"""The server that the benchmarks measure over HTTP: `rungpt serve` on free ports of 127.0.0.1."""

import signal
import subprocess
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from typing import Any

from benchmark_contenders import Contender
from startup_benchmark import READY_SECONDS, RUNGPT, free_port, is_ready

from run_gpt.bench.load import Bounds, Level, run_level
from run_gpt.bench.processes import find
from run_gpt.bench.protocol import APIS
from run_gpt.bench.sender import HttpSender
from run_gpt.bench.summary import Summary, summarise
from run_gpt.bench.workload import Given, Prompt
from run_gpt.client.endpoint import Endpoint

ANSWER_SECONDS = 300.0
STOP_SECONDS = 60.0


class Server:
    """A running server of a contender's model, ready after `__init__`. Raises SystemExit, with its log, if it is not.

    OMP_NUM_THREADS passes the contender's thread count; `more` are options of `rungpt serve`.
    """

    def __init__(self, contender: Contender, *more: str):
        http_port = free_port()
        self.url = f"http://127.0.0.1:{http_port}"
        command = [*RUNGPT, "serve", contender.model, "--precision", contender.precision, "--no-speculate"]
        command += ["--runner", str(contender.runner), "--max-running", str(contender.max_running)]
        command += ["--http-port", str(http_port), "--grpc-port", str(free_port()), *more]
        self._log = tempfile.TemporaryFile()  # noqa: SIM115
        self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=self._log, stderr=self._log)
        start = time.perf_counter()
        while not is_ready(f"{self.url}/ready"):
            if self._process.poll() is not None or time.perf_counter() - start > READY_SECONDS:
                self._end()
                raise SystemExit(f"rungpt serve did not become ready:\n{self._log.read().decode(errors='replace')}")
            time.sleep(0.1)

    async def burst(self, prompts: Sequence[Prompt], streamed: bool, api: str = "generate", **extra: Any) -> Summary:
        """Send all prompts at once and return the client's figures. Raises SystemExit if one fails.

        `extra` are fields of each request; `min_new_tokens` among them makes answers of the API `generate` exact.
        """
        level, endpoint = Level("closed", len(prompts), streamed), Endpoint.parse(self.url)
        bounds = Bounds(requests=len(prompts), seconds=ANSWER_SECONDS, timeout=ANSWER_SECONDS)
        body = partial(APIS[api].body, model=None, exact=False, extra=extra)
        sender = HttpSender(endpoint, APIS[api], None, body)
        try:
            run = await run_level(level, sender, Given(prompts), bounds, server=find(endpoint, self._process.pid))
        finally:
            await sender.aclose()
        if failed := [sample for sample in run.samples if not sample.ok]:
            raise SystemExit(f"{level}: {failed[0].failure}: {failed[0].detail}")
        return summarise(run, {})

    def close(self) -> None:
        """End the server as Ctrl-C would, or hard after STOP_SECONDS. Raises SystemExit, with its log, if it failed."""
        if (code := self._end()) != 0:
            raise SystemExit(f"rungpt serve ended with {code}:\n{self._log.read().decode(errors='replace')}")

    def _end(self) -> int:
        """End the server and return its exit code; the log is then at its beginning."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()  # its other processes see that it is gone, and end
            self._process.wait()
        self._log.seek(0)
        return self._process.returncode
