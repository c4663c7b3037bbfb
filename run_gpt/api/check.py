"""Check of the native requests that one request stands for, before any of them is answered: a stream is a 200 then."""

from collections.abc import Sequence
from typing import Self

from pydantic import BaseModel, ConfigDict

from run_gpt.api.schema import GenerateRequest
from run_gpt.api.values import AnyTextOrIds

PATH = "/check"
"""Path of the inner wire: gateways ask executors, clients do not."""


class PromptsCheck(BaseModel):
    """Requests that differ in their prompts alone."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    request: GenerateRequest
    """First request."""
    prompts: list[AnyTextOrIds]
    """Prompts of all requests."""

    @classmethod
    def of(cls, natives: Sequence[GenerateRequest]) -> Self:
        """Return the check of these requests, which were checked against the schema before."""
        return cls.model_construct(request=natives[0], prompts=[native.prompt for native in natives])

    def requests(self) -> list[GenerateRequest]:
        """Return the requests."""
        return [self.request.model_copy(update={"prompt": prompt}) for prompt in self.prompts]
