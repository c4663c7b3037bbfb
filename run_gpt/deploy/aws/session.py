"""Owns the calls to AWS: boto3's clients, and a one-line error for each way in which a call can fail."""

from typing import Any

from run_gpt.errors import SetupError

ATTEMPTS = 5
"""Greatest number of attempts of a call that AWS does not answer or throttles."""
_EXPIRED = ("ExpiredToken", "ExpiredTokenException", "RequestExpired")
_UNKNOWN = ("InvalidClientTokenId", "UnrecognizedClientException", "SignatureDoesNotMatch", "AuthFailure")
_FORBIDDEN = ("AccessDenied", "AccessDeniedException", "UnauthorizedOperation", "UnauthorizedException")
_NO_CREDENTIALS = "no credentials for AWS: run `aws configure` or `aws sso login`, or set $AWS_PROFILE"


class Refused(SetupError):
    """Error with which AWS answered a call; `code` is AWS's own."""

    def __init__(self, message: str, code: str, said: str):
        super().__init__(message)
        self.code = code
        self.said = said


class Session:
    """Session in one account and region. Raises SetupError without boto3, a region, or a profile of that name."""

    def __init__(self, region: str | None):
        try:
            import boto3
        except ImportError as error:
            raise SetupError("AWS needs boto3: pip install 'rungpt[aws]'") from error
        from botocore.exceptions import BotoCoreError

        try:
            self._boto: Any = boto3.Session(region_name=region)
        except BotoCoreError as error:
            raise SetupError(f"the AWS configuration cannot be used: {_line(error)}") from error
        if self._boto.region_name is None:
            raise SetupError("no AWS region: give --region, or set $AWS_DEFAULT_REGION")
        self.region: str = self._boto.region_name
        self._clients: dict[str, Any] = {}

    def call(self, service: str, operation: str, **arguments: Any) -> dict[str, Any]:
        """Return the answer of a call, such as `call("ecs", "list_tasks", cluster=...)`. Raises SetupError, Refused."""
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            return dict(getattr(self._client(service), operation)(**arguments))
        except ClientError as error:
            raise self._refused(error) from error
        except BotoCoreError as error:
            raise SetupError(self._unreached(error)) from error

    def _client(self, service: str) -> Any:
        from botocore.config import Config

        if service not in self._clients:
            config = Config(connect_timeout=10, read_timeout=60, retries={"mode": "standard", "max_attempts": ATTEMPTS})
            self._clients[service] = self._boto.client(service, config=config)
        return self._clients[service]

    def _refused(self, error: Any) -> Refused:
        code, said = error.response["Error"]["Code"], _line(error.response["Error"].get("Message", ""))
        if code in _EXPIRED:
            message = "the credentials for AWS have expired: run `aws sso login`, or get new ones"
        elif code in _UNKNOWN:
            message = "AWS does not know these credentials: see `aws configure list`"
        elif code in _FORBIDDEN:
            message = f"these credentials may not do this on AWS: {said or error.operation_name}"
        else:
            message = f"AWS refused {error.operation_name}: {said or code}"
        return Refused(message, code, said)

    def _unreached(self, error: Any) -> str:
        from botocore import exceptions

        if isinstance(error, exceptions.NoCredentialsError | exceptions.PartialCredentialsError):
            return _NO_CREDENTIALS
        if isinstance(error, exceptions.SSOError | exceptions.CredentialRetrievalError):
            return f"the credentials for AWS cannot be read: {_line(error)}"
        if isinstance(error, exceptions.HTTPClientError | exceptions.ConnectionError):
            return f"AWS cannot be reached in {self.region}: {_line(error)}; check the network and --region"
        return f"a call to AWS failed: {_line(error)}"


def _line(text: Any) -> str:
    return " ".join(str(text).split()).rstrip(".")
