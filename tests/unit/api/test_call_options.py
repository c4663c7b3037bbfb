"""Without this test editors would complete parameters that do not exist."""

import pytest

from run_gpt.api.call_options import CallOptions, ChatOptions, GenerateOptions
from run_gpt.api.schema import SYNONYMS, ChatRequest, GenerateRequest, Parameters


@pytest.mark.parametrize(("options", "schema"), [(GenerateOptions, GenerateRequest), (ChatOptions, ChatRequest)])
def test_the_options_are_the_fields_of_the_schema(options: type, schema: type[Parameters]) -> None:
    fields = schema.model_fields.keys() - {"prompt", "messages"}
    inherited = options.__annotations__.keys()
    assert inherited == fields | SYNONYMS.keys() | CallOptions.__annotations__.keys()
