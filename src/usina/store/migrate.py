"""The schema brought to this release. Alembic is loaded only where there is something to do: it takes a second."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection, column, inspect, select, table

from usina.store.database import Database

if TYPE_CHECKING:
    from alembic.config import Config

_FOLDER = Path(__file__).parent / "migrations"
_VERSION = "alembic_version"


def newest() -> str:
    """The last revision of this release; revisions are numbered, and their files begin with the number."""
    return max(file.name.partition("_")[0] for file in (_FOLDER / "versions").glob("[0-9]*.py"))


def alembic_config(connection: Connection | None = None) -> Config:
    """Alembic, pointed at our migrations and at an open connection."""
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(_FOLDER))
    config.attributes["connection"] = connection
    return config


async def migrate(database: Database, revision: str = "head") -> None:
    """Upgrade the schema to `revision`. Two control planes that start together do it one after the other."""

    def upgrade(connection: Connection) -> None:
        if revision == "head" and _present(connection) == newest():
            return
        from alembic import command

        command.upgrade(alembic_config(connection), revision)

    await database.transact(upgrade)


def _present(connection: Connection) -> Any:
    """The revision of the schema that is there, or None."""
    if not inspect(connection).has_table(_VERSION):
        return None
    return connection.execute(select(column("version_num")).select_from(table(_VERSION))).scalar()
