"""Check of several prompts of one stream by a replica, before the first byte: an error is then a status of its own."""

import time
from collections.abc import Sequence

from run_gpt.api.check import PATH, PromptsCheck
from run_gpt.api.request import AnyRequest
from run_gpt.api.schema import GenerateRequest
from run_gpt.errors import InvalidRequest, RequestError
from run_gpt.gateway.pool import ReplicaPool


async def check_prompts(pool: ReplicaPool, natives: Sequence[AnyRequest], deadline: float) -> None:
    """Raise InvalidRequest, or ContextLengthExceeded, if one of several prompts cannot be answered.

    `deadline` is on time.monotonic's clock. A single prompt needs no check: its stream begins with its error.
    """
    prompts = [native for native in natives if isinstance(native, GenerateRequest)]
    if len(prompts) < 2 or not (replicas := pool.sure or pool.ready):
        return
    replica = min(replicas, key=lambda one: one.in_flight)
    replica.in_flight += 1  # a leaving replica stays until this is over
    try:
        body = PromptsCheck.of(prompts).model_dump_json(exclude_none=True).encode()
        await replica.ask(PATH, body, timeout=max(0.001, deadline - time.monotonic()))
    except InvalidRequest:
        raise
    except RequestError:
        pass  # the streams meet it themselves, and may be tried again on another replica
    finally:
        replica.in_flight -= 1
