"""Where this person's site is: ``~/.config/usina/config.json``, mode 600, for it holds a token.

`USINA_ENDPOINT`, `USINA_TOKEN` and `USINA_PROJECT` come before what the file says.
"""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

from usina.core.errors import Invalid


class Config(msgspec.Struct, frozen=True):
    endpoint: str = ""
    token: str = ""
    project: str | None = None

    def __repr__(self) -> str:  # the token never slips into a log
        return f"Config(endpoint={self.endpoint!r}, project={self.project!r})"


def folder() -> Path:
    """``$USINA_CONFIG_DIR``, else ``$XDG_CONFIG_HOME/usina``, else ``~/.config/usina``."""
    if named := os.environ.get("USINA_CONFIG_DIR"):
        return Path(named)
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "usina"


def stored() -> Config:
    """What the file says; nothing, if there is none. Raises `Invalid` for a file that is not ours."""
    path = folder() / "config.json"
    try:
        return msgspec.json.decode(path.read_bytes(), type=Config)
    except FileNotFoundError:
        return Config()
    except msgspec.MsgspecError as error:
        raise Invalid(f"{path} cannot be read: {error}") from None


def effective() -> Config:
    """The file, with the environment before it."""
    kept = stored()
    return Config(
        os.environ.get("USINA_ENDPOINT") or kept.endpoint,
        os.environ.get("USINA_TOKEN") or kept.token,
        os.environ.get("USINA_PROJECT") or kept.project,
    )


def store(config: Config) -> Path:
    """Write the file, private from its first byte on; returns its path."""
    place = folder()
    place.mkdir(parents=True, exist_ok=True, mode=0o700)
    path, scratch = place / "config.json", place / f".config.{os.getpid()}"
    fd = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
    with os.fdopen(fd, "wb") as file:
        os.fchmod(file.fileno(), 0o600)
        file.write(msgspec.json.format(msgspec.json.encode(config), indent=1) + b"\n")
    os.replace(scratch, path)
    return path


def forget() -> bool:
    """Remove the file; whether there was one."""
    try:
        (folder() / "config.json").unlink()
    except FileNotFoundError:
        return False
    return True
