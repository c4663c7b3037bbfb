"""docs/clients.md: a wrong row would send users to a client that was not tried."""

from test_project import ROOT, script

TEXT = (ROOT / "docs" / "clients.md").read_text()


def test_the_table_is_that_of_the_tests() -> None:
    assert script("clients_table").made() == TEXT, "run: python scripts/clients_table.py --write"


def test_every_client_has_its_files_and_its_requests() -> None:
    known = script("clients_table").CLIENTS
    for client in known:
        assert client.cases, client.name
        assert client.own or client.needs or client.pins.exists(), client.pins
        assert (ROOT / "tests" / "clients" / "data" / "requests" / f"{client.name}.json").exists(), client.name
    files = {path.name.rpartition("_cases")[0] for path in ROOT.glob("tests/clients/*/*_cases.*")}
    assert files == {client.name for client in known}
