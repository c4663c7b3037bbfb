"""Rights of keys: without these tests a user's key could unload a model, or a typing error in the file give rights."""

from pathlib import Path

import pytest

from run_gpt.api.endpoints import ENDPOINTS, Endpoint, Handler
from run_gpt.errors import Forbidden, SetupError
from run_gpt.gateway.keys import Keys, parse_keys
from run_gpt.gateway.rights import EVERYTHING, MOST, Rights, parse_rights

ADMINS = {"/adapters/load", "/adapters/unload", "/models/load", "/models/unload"}
MODELS = {"/v1/models", "/v1/models/{model}", "/api/tags", "/api/ps", "/api/show"}


def test_a_line_gives_a_role_and_limits_after_the_key() -> None:
    text = b"a: longenough\nb: long=enough  role=user\ttokens=2000 requests=8 \r\nc: c:longenough role=monitor"
    assert {name: key.rights for name, key in parse_keys(text, Path("keys")).items()} == {
        "a": EVERYTHING,
        "b": Rights(role="user", requests=8, tokens=2000),
        "c": Rights(role="monitor"),
    }


def test_a_line_of_before_there_were_roles_and_the_key_without_a_name_may_do_everything(tmp_path: Path) -> None:
    """A server that is updated must go on with its file."""
    (tmp_path / "keys").write_text("alice: alices-key\n")
    keys = Keys("own-key-1", tmp_path / "keys")
    assert [keys.rights(name) for name in keys.names] == [EVERYTHING, EVERYTHING]
    assert Rights(role="admin", requests=None, tokens=None) == EVERYTHING


@pytest.mark.parametrize(
    "words",
    [
        ["user"],
        ["role="],
        ["role=Admin"],
        ["role=root"],
        ["role=user", "role=admin"],
        ["requests"],
        ["requests=0"],
        ["requests=-1"],
        ["requests=1.5"],
        ["requests=1_0"],
        ["requests=\u0661"],
        [f"tokens={MOST + 1}"],
        ["tokens=" + "9" * 5000],
        ["tokens=8", "tokens=8"],
        ["horse", "battery"],
        ["=8"],
    ],
)
def test_what_is_no_right_is_refused_and_never_repeated(words: list[str]) -> None:
    """The rest of the line may be the rest of a key with spaces."""
    with pytest.raises(SetupError, match="keys, line 1: ") as raised:
        parse_rights(words, "keys, line 1")
    assert len(raised.value.message) < 200
    assert not [word for word in ("horse", "root", "Admin") if word in raised.value.message]


@pytest.mark.parametrize("endpoint", ENDPOINTS.values(), ids=lambda endpoint: endpoint.path)
def test_only_an_admin_changes_what_is_served(endpoint: Endpoint) -> None:
    """The endpoints come from the table itself, so that one added later is tested, too."""

    def allowed(rights: Rights) -> bool:
        try:
            rights.check(endpoint.handler)
        except Forbidden:
            return False
        return True

    assert allowed(Rights(role="admin"))
    assert allowed(Rights(role="user")) == (endpoint.path not in ADMINS)
    assert allowed(Rights(role="monitor")) == (endpoint.path in MODELS)
    assert {each.path for each in ENDPOINTS.values()} >= ADMINS | MODELS


def test_a_handler_that_is_added_later_is_an_admins() -> None:
    for handler in set(Handler) - {Handler.MODEL, Handler.TRANSLATED, Handler.LIST_MODELS, Handler.SHOW_MODEL}:
        with pytest.raises(Forbidden):
            Rights(role="user").check(handler)


def test_a_users_key_reads_no_metrics_for_they_show_what_others_do() -> None:
    Rights(role="admin").check_metrics()
    Rights(role="monitor").check_metrics()
    with pytest.raises(Forbidden, match="role=monitor"):
        Rights(role="user").check_metrics()
