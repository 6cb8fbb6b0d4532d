"""Tasks: cores in thousandths, several drivers to a host, parts of resources, logs, blobs, identities"""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    for table, columns in (
        ("providers", ("used_cores",)),
        ("claims", ("cores",)),
        ("quotas", ("used_cores", "limit_cores")),
    ):
        counted = sa.table(table, *(sa.column(name, sa.BigInteger()) for name in columns))
        op.execute(counted.update().values({name: counted.c[name] * 1000 for name in columns}))
    op.add_column("quotas", sa.Column("limit_tasks", sa.BigInteger(), nullable=True))
    op.add_column("quotas", sa.Column("used_tasks", sa.BigInteger(), nullable=False, server_default="0"))
    op.add_column("providers", sa.Column("also", sa.LargeBinary(), nullable=True))
    providers = sa.table("providers", sa.column("also", sa.LargeBinary()))
    op.execute(providers.update().values(also=b"{}"))
    with op.batch_alter_table("providers", schema=None) as batch_op:
        batch_op.alter_column("also", existing_type=sa.LargeBinary(), nullable=False)
    with op.batch_alter_table("quotas", schema=None) as batch_op:
        batch_op.alter_column("used_tasks", existing_type=sa.BigInteger(), nullable=False, server_default=None)
    op.add_column("resources", sa.Column("parent", sa.String(), nullable=True))
    op.create_index("resources_parent", "resources", ["parent"])
    op.create_table(
        "task_logs",
        sa.Column("task", sa.String(), nullable=False),
        sa.Column("run", sa.Integer(), nullable=False),
        sa.Column("start", sa.BigInteger(), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("first_at", sa.BigInteger(), nullable=False),
        sa.Column("last_at", sa.BigInteger(), nullable=False),
        sa.Column("data", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("task", "run", "start"),
    )
    op.create_table(
        "task_usage",
        sa.Column("task", sa.String(), nullable=False),
        sa.Column("run", sa.Integer(), nullable=False),
        sa.Column("at", sa.Double(), nullable=False),
        sa.Column("sample", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("task", "run", "at"),
    )
    op.create_table(
        "blobs",
        sa.Column("project", sa.String(), nullable=False),
        sa.Column("digest", sa.String(), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("used_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("project", "digest"),
    )
    op.create_index("blobs_digest", "blobs", ["digest"])
    op.create_table(
        "identities",
        sa.Column("realm", sa.String(), nullable=False),
        sa.Column("member", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("realm", "member"),
    )
