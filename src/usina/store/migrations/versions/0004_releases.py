"""Releases are counted apart from the generation of a provider"""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("providers", sa.Column("releases", sa.BigInteger(), nullable=False, server_default="0"))
    with op.batch_alter_table("providers", schema=None) as batch_op:
        batch_op.alter_column("releases", existing_type=sa.BigInteger(), nullable=False, server_default=None)
