"""Alembic's entry: run on the connection that `usina.store.store.migrate` handed over."""

from alembic import context

from usina.store.tables import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata, render_as_batch=True)
context.run_migrations()
