"""Tables, unit of work, outbox, leases, migrations: one meaning on SQLite and PostgreSQL."""
