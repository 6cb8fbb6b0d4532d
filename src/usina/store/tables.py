"""The tables. JSON columns hold msgspec documents of the frozen dataclasses in `core`; times are epoch seconds, cores
are counted in thousandths, so that sums are exact.

`revision` of the schema is in `migrations/`; this module is what the newest revision looks like.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Double,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    PrimaryKeyConstraint,
    String,
    Table,
    Text,
    UniqueConstraint,
)

metadata = MetaData()

tenants = Table(
    "tenants",
    metadata,
    Column("id", String, primary_key=True),
    Column("name", String, nullable=False, unique=True),
    Column("created_at", Double, nullable=False),
)

projects = Table(
    "projects",
    metadata,
    Column("id", String, primary_key=True),
    Column("tenant", String, nullable=False),
    Column("name", String, nullable=False),
    Column("created_at", Double, nullable=False),
    Column("keep_prompts", Integer, nullable=False, server_default="0"),
    UniqueConstraint("tenant", "name"),
)

members = Table(
    "members",
    metadata,
    Column("id", String, primary_key=True),
    Column("tenant", String),
    Column("name", String, nullable=False, unique=True),
    Column("email", String, nullable=False, default=""),
    Column("ssh_keys", LargeBinary, nullable=False, default=b"[]"),
    Column("disabled", Boolean, nullable=False, default=False),
    Column("created_at", Double, nullable=False),
)

roles = Table(
    "roles",
    metadata,
    Column("member", String, nullable=False),
    Column("scope", String, nullable=False),
    Column("role", Integer, nullable=False),
    PrimaryKeyConstraint("member", "scope"),
    Index("roles_scope", "scope"),
)

keys = Table(
    "keys",
    metadata,
    Column("id", String, primary_key=True),
    Column("member", String, nullable=False, index=True),
    Column("name", String, nullable=False),
    Column("version", Integer, nullable=False, default=1),
    Column("project", String),
    Column("role", Integer),
    Column("created_at", Double, nullable=False),
    Column("expires_at", Double),
    Column("revoked_at", Double),
    Column("last_used_at", Double),
    Column("limits", LargeBinary),  # at the gateway of models; none: without
)

quotas = Table(
    "quotas",
    metadata,
    Column("scope", String, primary_key=True),
    *(Column(f"limit_{m}", BigInteger) for m in ("machines", "cores", "memory", "disk", "gpus", "addresses", "tasks")),
    *(
        Column(f"used_{m}", BigInteger, nullable=False, default=0)
        for m in ("machines", "cores", "memory", "disk", "gpus", "addresses", "tasks")
    ),
)

providers = Table(
    "providers",
    metadata,
    Column("id", String, primary_key=True),
    Column("name", String, nullable=False, unique=True),
    Column("driver", String, nullable=False),
    Column("options", LargeBinary, nullable=False),
    Column("also", LargeBinary, nullable=False, default=b"{}"),  # further drivers of the same host: name -> options
    Column("state", String, nullable=False),
    Column("generation", Integer, nullable=False, default=1),
    Column("releases", BigInteger, nullable=False, default=0),  # of claims, which no claim needs to mind
    Column("inventory", LargeBinary, nullable=False),
    Column("cordoned_devices", LargeBinary, nullable=False, default=b"[]"),
    Column("cpu_ratio", Double, nullable=False, default=1.0),
    Column("terms", LargeBinary, nullable=False, default=b"{}"),
    Column("used_cores", BigInteger, nullable=False, default=0),
    Column("used_memory", BigInteger, nullable=False, default=0),
    Column("used_disk", BigInteger, nullable=False, default=0),
    Column("reachable", Boolean, nullable=False, default=True),
    Column("message", Text, nullable=False, default=""),
    Column("seen_at", Double, nullable=False, default=0.0),
    Column("created_at", Double, nullable=False),
)

claims = Table(
    "claims",
    metadata,
    Column("provider", String, nullable=False),
    Column("resource", String, nullable=False, index=True),
    Column("cores", BigInteger, nullable=False, default=0),
    Column("memory", BigInteger, nullable=False, default=0),
    Column("disk", BigInteger, nullable=False, default=0),
    Column("exact", LargeBinary, nullable=False),  # the whole Claim: CPUs, nodes, pages, devices
    Column("particular", Boolean, nullable=False, default=False),  # names CPUs, nodes or devices
    PrimaryKeyConstraint("provider", "resource"),
)

resources = Table(
    "resources",
    metadata,
    Column("id", String, primary_key=True),
    Column("kind", String, nullable=False),
    Column("tenant", String, nullable=False),
    Column("project", String, nullable=False),
    Column("name", String, nullable=False),
    Column("spec", LargeBinary, nullable=False),
    Column("status", LargeBinary, nullable=False),
    Column("generation", Integer, nullable=False, default=1),
    Column("observed", Integer, nullable=False, default=0),
    Column("phase", String, nullable=False),
    Column("conditions", LargeBinary, nullable=False, default=b"[]"),
    Column("provider", String),
    Column("deleting", Boolean, nullable=False, default=False),
    Column("attempts", Integer, nullable=False, default=0),
    Column("labels", LargeBinary, nullable=False, default=b"{}"),
    Column("created_at", Double, nullable=False),
    Column("updated_at", Double, nullable=False),
    Column("due_at", Double),
    Column("lease_owner", String),
    Column("lease_until", Double),
    Column("parent", String),
    Index("resources_listing", "project", "kind", "id"),
    Index("resources_due", "due_at"),
    Index("resources_provider", "provider"),
    Index("resources_parent", "parent"),
)

# A row says "this key is taken in this scope, by this owner": names, addresses, subnets, ports, who uses what, and who
# is in which group.
reservations = Table(
    "reservations",
    metadata,
    Column("scope", String, nullable=False),
    Column("key", String, nullable=False),
    Column("owner", String, nullable=False, index=True),
    PrimaryKeyConstraint("scope", "key"),
)

# The outbox is the event log is the story: written in the same commit as what it tells.
events = Table(
    "events",
    metadata,
    Column("seq", BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=True),
    Column("at", Double, nullable=False),
    Column("kind", String, nullable=False),
    Column("subject", String, nullable=False),
    Column("related", String),
    Column("tenant", String),
    Column("project", String),
    Column("actor", String, nullable=False, default=""),
    Column("cause", String, nullable=False, default=""),
    Column("text", Text, nullable=False, default=""),
    Column("data", LargeBinary, nullable=False, default=b"{}"),
    Index("events_subject", "subject", "seq"),
    Index("events_related", "related", "seq"),
    Index("events_project", "project", "seq"),
    Index("events_kind", "kind", "seq"),
    sqlite_autoincrement=True,
)

# What runs of tasks have said, in pieces of whole lines; `start` is the position in the log of that run.
task_logs = Table(
    "task_logs",
    metadata,
    Column("task", String, nullable=False),
    Column("run", Integer, nullable=False),
    Column("start", BigInteger, nullable=False),
    Column("size", BigInteger, nullable=False),  # bytes of text
    Column("first_at", BigInteger, nullable=False),  # milliseconds
    Column("last_at", BigInteger, nullable=False),
    Column("data", LargeBinary, nullable=False),  # zlib
    PrimaryKeyConstraint("task", "run", "start"),
)

task_usage = Table(
    "task_usage",
    metadata,
    Column("task", String, nullable=False),
    Column("run", Integer, nullable=False),
    Column("at", Double, nullable=False),
    Column("sample", LargeBinary, nullable=False),
    PrimaryKeyConstraint("task", "run", "at"),
)

# Content that a project has given or got; the bytes lie in a folder by digest, once for all who have them.
blobs = Table(
    "blobs",
    metadata,
    Column("project", String, nullable=False),
    Column("digest", String, nullable=False),
    Column("size", BigInteger, nullable=False),
    Column("used_at", Double, nullable=False),
    PrimaryKeyConstraint("project", "digest"),
    Index("blobs_digest", "digest"),
)

# Who a member is on stacks that know people: a realm is a cluster, or whatever shares a set of accounts.
identities = Table(
    "identities",
    metadata,
    Column("realm", String, nullable=False),
    Column("member", String, nullable=False),
    Column("name", String, nullable=False),
    PrimaryKeyConstraint("realm", "member"),
)

# Idempotency keys of orders: the same key with the same request gives the same resource.
requests = Table(
    "requests",
    metadata,
    Column("member", String, nullable=False),
    Column("key", String, nullable=False),
    Column("digest", String, nullable=False),
    Column("resource", String, nullable=False),
    Column("at", Double, nullable=False),
    PrimaryKeyConstraint("member", "key"),
)

# Tokens that a key, project or tenant may use up. `leased` is the sum of what gateways hold of it: what is left to give
# out is tokens - spent - leased, whatever any gateway does or dies of.
budgets = Table(
    "budgets",
    metadata,
    Column("scope", String, primary_key=True),
    Column("tokens", BigInteger, nullable=False),
    Column("every", String, nullable=False),
    Column("began_at", Double, nullable=False),
    Column("spent", BigInteger, nullable=False, default=0),
    Column("leased", BigInteger, nullable=False, default=0),
)

budget_leases = Table(
    "budget_leases",
    metadata,
    Column("scope", String, nullable=False),
    Column("gateway", String, nullable=False),
    Column("began_at", Double, nullable=False),  # of the budget's period that it belongs to
    Column("tokens", BigInteger, nullable=False),
    PrimaryKeyConstraint("scope", "gateway", "began_at"),
)

# Gateways that give out tokens: how far their journal is in the ledger, and what they measure of endpoints.
gateways = Table(
    "gateways",
    metadata,
    Column("id", String, primary_key=True),
    Column("batch", BigInteger, nullable=False),
    Column("seen_at", Double, nullable=False),
    Column("loads", LargeBinary, nullable=False),
)

llm_usage = Table(
    "llm_usage",
    metadata,
    Column("minute", BigInteger, nullable=False),
    Column("key", String, nullable=False),
    Column("endpoint", String, nullable=False),
    Column("model", String, nullable=False),
    Column("project", String, nullable=False),
    Column("tenant", String, nullable=False),
    Column("member", String, nullable=False),
    Column("requests", BigInteger, nullable=False),
    Column("failed", BigInteger, nullable=False),
    Column("prompt", BigInteger, nullable=False),
    Column("cached", BigInteger, nullable=False),
    Column("completion", BigInteger, nullable=False),
    Column("seconds", Double, nullable=False),
    PrimaryKeyConstraint("minute", "key", "endpoint", "model", "project"),
    Index("llm_usage_project", "project", "minute"),
    Index("llm_usage_tenant", "tenant", "minute"),
)

# Model repositories. `main` is a summary of the newest commit on that branch, for lists.
models = Table(
    "models",
    metadata,
    Column("id", String, primary_key=True),
    Column("tenant", String, nullable=False),
    Column("project", String, nullable=False),
    Column("name", String, nullable=False),
    Column("folded", String, nullable=False),  # the name in small letters, as it is looked up
    Column("short", String, nullable=False),  # the same without its namespace
    Column("visibility", String, nullable=False),
    Column("gated", Boolean, nullable=False),
    Column("terms", String, nullable=False),
    Column("origin", String, nullable=False),
    Column("main", LargeBinary, nullable=False),
    Column("created_at", Double, nullable=False),
    Column("updated_at", Double, nullable=False),
    UniqueConstraint("project", "folded"),
    Index("models_folded", "folded"),
    Index("models_short", "short"),
    Index("models_tenant", "tenant", "visibility"),
)

# Commits. `document` is the whole revision, compressed; the other columns are for logs of commits.
model_revisions = Table(
    "model_revisions",
    metadata,
    Column("model", String, nullable=False),
    Column("id", String, nullable=False),
    Column("parent", String),
    Column("at", Double, nullable=False),
    Column("author", String, nullable=False),
    Column("title", String, nullable=False),
    Column("message", Text, nullable=False),
    Column("document", LargeBinary, nullable=False),
    PrimaryKeyConstraint("model", "id"),
)

model_refs = Table(
    "model_refs",
    metadata,
    Column("model", String, nullable=False),
    Column("kind", String, nullable=False),
    Column("name", String, nullable=False),
    Column("revision", String, nullable=False),
    PrimaryKeyConstraint("model", "kind", "name"),
)

model_acceptances = Table(
    "model_acceptances",
    metadata,
    Column("model", String, nullable=False),
    Column("member", String, nullable=False),
    Column("name", String, nullable=False),
    Column("licence", String, nullable=False),
    Column("at", Double, nullable=False),
    PrimaryKeyConstraint("model", "member", "licence"),
)
