"""Print the table of docs/clients.md, made from tests/clients; `--write` writes it there. A test compares them."""

import sys
from pathlib import Path

from document_tables import main, row, table, with_tables

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "tests" / "clients"))

from known import CLIENTS, Client  # noqa: E402

DOCUMENT = ROOT / "docs" / "clients.md"
MAKER = "scripts/clients_table.py"


def clients() -> str:
    """Return the table of the clients."""
    return table(("client", "version", "what is run", "what its users set"), [_line(client) for client in CLIENTS])


def _line(client: Client) -> str:
    package = f"`{client.package}`" if client.package.lower() != client.title.lower() else ""
    name = f"{client.title} ({package})" if package else client.title
    return row(f"{name} \\*" if client.most_used else name, client.version, "; ".join(client.cases), client.sets)


TABLES = {"clients": clients}


def made() -> str:
    """Return the document with its table made anew."""
    return with_tables(DOCUMENT, MAKER, TABLES)


if __name__ == "__main__":
    main(DOCUMENT, MAKER, TABLES)
