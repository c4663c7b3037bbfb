"""Compare servers under the same load, and a server over HTTP with the engine in this process.

    python scripts/server_benchmark.py --server "RunGPT=http://127.0.0.1:52000" --server "vLLM=http://127.0.0.1:8001/v1"
    python scripts/server_benchmark.py --server "RunGPT=http://127.0.0.1:52000" --engine "the engine=smollm2:bf16"

An endpoint that ends in /v1 has OpenAI's API and must know `ignore_eos`, or be named with --endless; any other is
RunGPT's own, http:// or grpc://. Each round puts the same bursts on all of them in turn, streamed and whole. If
servers cannot run beside each other, measure one after the other within the same quarter of an hour, and join the
files:

    python scripts/server_benchmark.py --server "vLLM=http://127.0.0.1:8001/v1" --json vllm.json
    python scripts/server_benchmark.py --server "RunGPT=http://127.0.0.1:52000" --join vllm.json --json all.json

Start RunGPT with --no-speculate and --no-reuse-prefixes, as the engine here is; a key is taken from RUNGPT_API_KEY.
Tables go to stdout, progress to stderr. Quote ratios of one run on a quiet machine.
"""

import argparse
import asyncio
import sys
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from run_gpt.bench import document, servers_table
from run_gpt.bench.online import Target
from run_gpt.bench.servers import (
    STREAMS,
    Measured,
    connect_server,
    load_engine,
    measure_servers,
    read_json,
    write_json,
)
from run_gpt.cli import options as cli_options
from run_gpt.errors import RunGPTError, SetupError


def named(text: str) -> tuple[str, str]:
    """Return the parts of NAME=VALUE."""
    name, sign, value = text.partition("=")
    if not (name and sign and value):
        raise argparse.ArgumentTypeError(f"{text}: write NAME=VALUE")
    return name, value


def progress(text: str) -> None:
    """Print a line of progress."""
    print(text, file=sys.stderr, flush=True)


async def measure(options: argparse.Namespace) -> list[Measured]:
    """Measure all servers and engines of the command line. Raises SetupError."""
    pids = {name: int(pid) for name, pid in options.pid}
    targets: dict[str, Target] = {}
    async with AsyncExitStack() as stack:
        for name, endpoint in options.server:
            endless = name in options.endless
            targets[name] = await connect_server(endpoint, pids.get(name), cli_options.token(None), endless=endless)
            stack.push_async_callback(targets[name].sender.aclose)
        for name, model in options.engine:
            progress(f"loading {model}")
            targets[name] = load_engine(*(model.rsplit(":", 1) if ":" in model else (model, "auto")))
            stack.push_async_callback(targets[name].sender.aclose)
        return await measure_servers(targets, options.streams, options.rounds, progress) if targets else []


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--server", action="append", type=named, default=[], metavar="NAME=ENDPOINT", help="a running server")
    add("--engine", action="append", type=named, default=[], metavar="NAME=MODEL:PRECISION", help="in this process")
    add("--pid", action="append", type=named, default=[], metavar="NAME=PID", help="default: what listens there")
    add("--endless", action="append", default=[], metavar="NAME", help="its model's config has no eos_token_id")
    add("--streams", nargs="+", type=int, default=STREAMS, metavar="N", help="requests at once; default: 1 4 16 64")
    add("--rounds", type=int, default=3, help="that count, after one that does not; default: %(default)s")
    add("--ratio", nargs=2, action="append", metavar=("A", "B"), help="default: the first over each of the others")
    add("--json", type=Path, metavar="FILE", help="keep everything that is shown")
    add("--join", nargs="+", type=Path, default=[], metavar="FILE", help="show what --json kept, too")
    add("--write", type=Path, metavar="DOCUMENT", help="put the tables between their marks")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, join and print. Raises SetupError."""
    options = parsed(arguments)
    if options.write:
        document.SERVERS.check(options.write)
    joined = [one for path in options.join for one in read_json(path)]
    names = [name for name, _ in (*options.server, *options.engine)] + [one.name for one in joined]
    if not names or len(set(names)) < len(names):
        raise SetupError("give servers of different names: --server NAME=ENDPOINT, --engine or --join")
    servers = {name for name, _ in options.server}
    for name in [*options.endless, *(name for name, _ in options.pid)]:
        if name not in servers:
            raise SetupError(f"{name}: --endless and --pid are for a name that --server gives")
    measured = [*asyncio.run(measure(options)), *joined]
    if options.json:
        write_json(measured, options.json)
    pairs = [(a, b) for a, b in options.ratio] if options.ratio else servers_table.default_pairs(measured)
    text = servers_table.document(measured, pairs)
    print(text)
    if options.write:
        document.SERVERS.write(options.write, text)


if __name__ == "__main__":
    try:
        main()
    except RunGPTError as error:
        sys.exit(f"server_benchmark.py: {error.message}")
