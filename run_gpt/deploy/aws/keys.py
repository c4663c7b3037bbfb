"""Owns the secret of a deployment, the only way in which its keys reach AWS."""

import json

from run_gpt.deploy.aws.session import Refused, Session


def keep(session: Session, name: str, fields: dict[str, str]) -> dict[str, str]:
    """Create or update the secret with these fields. Return the template parameters that name it and its version.

    An unchanged secret keeps its version, so that no container is replaced because of it.
    """
    text, secret = json.dumps(fields), _secret(name)
    try:
        held = session.call("secretsmanager", "get_secret_value", SecretId=secret)
    except Refused as refused:
        if refused.code != "ResourceNotFoundException":
            raise
        held = session.call(
            "secretsmanager",
            "create_secret",
            Name=secret,
            SecretString=text,
            Description=f"Keys of the RunGPT deployment {name}",
        )
    else:
        if held["SecretString"] != text:
            held = session.call("secretsmanager", "put_secret_value", SecretId=secret, SecretString=text)
    return {"KeySecret": held["ARN"], "KeyVersion": held["VersionId"]}


def forget(session: Session, name: str) -> bool:
    """Delete the secret at once, if there is one. Returns True if there was."""
    try:
        session.call("secretsmanager", "describe_secret", SecretId=_secret(name))
    except Refused as refused:
        if refused.code != "ResourceNotFoundException":
            raise
        return False
    session.call("secretsmanager", "delete_secret", SecretId=_secret(name), ForceDeleteWithoutRecovery=True)
    return True


def _secret(name: str) -> str:
    return f"rungpt/{name}"
