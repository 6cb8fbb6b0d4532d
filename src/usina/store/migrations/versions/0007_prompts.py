"""Projects say for how many days prompts are kept."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("projects", sa.Column("keep_prompts", sa.Integer(), nullable=False, server_default="0"))


def downgrade() -> None:
    op.drop_column("projects", "keep_prompts")
