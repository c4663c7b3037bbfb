"""`Client`: gives remote models and lists them."""

from pathlib import Path

from run_gpt.api.loop_thread import result
from run_gpt.api.openai import models
from run_gpt.client.endpoint import Endpoint
from run_gpt.client.model import Model
from run_gpt.client.trust import given_ca
from run_gpt.errors import InvalidRequest

DEFAULT_ENDPOINT = "grpc://0.0.0.0:51000"


class Client:
    """Access to the models of RunGPT servers. Each request has `token` as `Authorization: Bearer TOKEN`.

    `ca_file`: certificates in PEM that are trusted instead of the well-known ones, for `grpcs://` and `https://`;
    default: $RUNGPT_CA_FILE. Raises InvalidRequest for a token or a file that cannot be.
    """

    def __init__(self, token: str | None = None, *, ca_file: str | Path | None = None):
        if token is not None and not (token.isascii() and token.isprintable() and token.strip() == token != ""):
            raise InvalidRequest("token: a token is printable ASCII text without spaces around it", param="token")
        self._token = token
        self._ca = given_ca(ca_file)

    def get_model(self, model_name: str | None = None, endpoint: str = DEFAULT_ENDPOINT) -> Model:
        """Return the model at `endpoint`: `grpc://HOST:PORT` or `http://HOST:PORT`; with TLS, `grpcs://` or `https://`.

        Nothing is sent before the first request. Each request contains `model_name` if it is given: a server that does
        not serve this model answers with ModelNotFound. Raises InvalidRequest for an endpoint of another form.
        """
        return Model(Endpoint.parse(endpoint), self._token, model_name, self._ca)

    async def alist_models(
        self, endpoint: str = DEFAULT_ENDPOINT, *, timeout: float | None = None
    ) -> list[models.Model]:
        """Return the models of the server at `endpoint`, the default first: names, states, memory in bytes, context.

        Raises InvalidRequest as `get_model`, Unavailable if nothing answers, DeadlineExceeded after `timeout` seconds.
        """
        async with self.get_model(endpoint=endpoint) as model:
            return await model._served(timeout)

    def list_models(self, endpoint: str = DEFAULT_ENDPOINT, *, timeout: float | None = None) -> list[models.Model]:
        """See `alist_models`."""
        with self.get_model(endpoint=endpoint) as model:
            return result(model._submit(model._served(timeout)))
