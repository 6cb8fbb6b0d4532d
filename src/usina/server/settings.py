"""Settings of one control-plane process: a data folder, a port, a database URL, the roles it plays."""

from __future__ import annotations

import hmac
import os
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path

from usina.core.errors import Invalid
from usina.core.units import GiB

ROLES = frozenset({"api", "engine", "gateway"})
MOST_WORKERS = 64


@dataclass(frozen=True, slots=True)
class Settings:
    data_dir: Path
    port: int = 8470
    bind: str = "127.0.0.1"
    database: str = ""  # empty: SQLite in the data folder
    master_key_file: Path | None = None  # shared by every control plane of one site
    roles: frozenset[str] = field(default=ROLES)
    gateway_workers: int = 1  # processes that serve models on the port; the first is this one
    local_host: bool = True  # take this machine into service when the site is founded
    allow_private_urls: bool = False  # let images be fetched from private addresses
    upload_limit: int = 64 * GiB
    hub_upstream: str = ""  # a hub of the Hugging Face protocol that models may be imported from
    hub_token_file: Path | None = None  # the key for it
    hub_on_demand: bool = False  # members need not ask for an import: reading at the hub's door begins one
    traces: str = ""  # collector of OpenTelemetry, by OTLP over HTTP: "http://host:4318"
    traces_share: float = 0.05  # of the traces that begin here
    policies: tuple[str, ...] = ()  # of placement: a policy, or "group:policy"; see `usina placement policies`
    guards: Path | None = None  # a TOML file that sets guards up; see `server/guards.py`
    runtimes: Mapping[str, Mapping[str, str]] = field(default_factory=dict)  # of models: name -> setting -> value

    @property
    def database_url(self) -> str:
        return self.database or f"sqlite:///{self.data_dir / 'usina.db'}"

    @property
    def endpoint(self) -> str:
        host = "127.0.0.1" if self.bind in ("0.0.0.0", "::") else self.bind  # noqa: S104
        return f"http://{host}:{self.port}"


def check_workers(settings: Settings) -> None:
    """Raises `Invalid`."""
    if not 1 <= settings.gateway_workers <= MOST_WORKERS:
        raise Invalid(f"gateway-workers: must be between 1 and {MOST_WORKERS}", field="gateway-workers")
    if settings.gateway_workers > 1 and not {"api", "gateway"} <= settings.roles:
        raise Invalid("gateway-workers: more than one needs the roles api and gateway", field="gateway-workers")


def master_key(settings: Settings) -> bytes:
    """The 32 bytes that every secret is derived from; made on the first start, mode 600, never in the database.

    Raises `Invalid` for a file that is not a key, and where none can be made.
    """
    path = settings.master_key_file or settings.data_dir / "master.key"
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return _read_key(path)
    except FileNotFoundError:
        raise Invalid(f"master-key-file: there is no folder {path.parent}", field="master-key-file") from None
    key = secrets.token_bytes(32)
    with os.fdopen(fd, "w") as file:
        file.write(key.hex() + "\n")
        file.flush()
        os.fsync(file.fileno())
    return key


def _read_key(path: Path) -> bytes:
    try:
        key = bytes.fromhex(path.read_text().strip())
    except ValueError:  # what it holds instead may be somebody's secret, so it is not told
        key = b""
    if len(key) != 32:
        raise Invalid(f"master-key-file: {path} is not a key of 64 hexadecimal digits", field="master-key-file")
    return key


def hub_token(settings: Settings) -> str:
    """The key for the upstream hub; "" for none. Raises `Invalid`, without saying what the file holds."""
    if settings.hub_token_file is None:
        return ""
    try:
        token = settings.hub_token_file.read_text().strip()
    except (OSError, UnicodeDecodeError):
        raise Invalid(f"hub-token-file: {settings.hub_token_file} cannot be read", field="hub-token-file") from None
    if not token or not token.isascii() or not token.isprintable() or " " in token:
        raise Invalid(f"hub-token-file: {settings.hub_token_file} holds no token", field="hub-token-file")
    return token


def instance_id(settings: Settings) -> str:
    """Names this data folder for good, so that a restarted process knows what its earlier lives have left."""
    path = settings.data_dir / "instance"
    if not path.exists():
        scratch = path.with_suffix(f".{os.getpid()}")
        scratch.write_text(secrets.token_hex(8) + "\n")
        os.replace(scratch, path)
    return path.read_text().strip()


def factory_id(master: bytes) -> str:
    """Eight characters that mark what belongs to this site on shared hosts; the same for all its control planes."""
    return hmac.new(master, b"factory", sha256).hexdigest()[:8]
