"""What operators say of their hosts: terms"""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("providers", sa.Column("terms", sa.LargeBinary(), nullable=True))
    providers = sa.table("providers", sa.column("terms", sa.LargeBinary()))
    op.execute(providers.update().values(terms=b"{}"))  # a document without fields: every default
    with op.batch_alter_table("providers", schema=None) as batch_op:
        batch_op.alter_column("terms", existing_type=sa.LargeBinary(), nullable=False)
