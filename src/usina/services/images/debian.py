"""Debian 12 packages for image recipes, by the mirror this host is set up with, without touching its
package state.

A private apt root is used: its own lists and an empty package database, but the host's own apt configuration
(proxies, certificates). A host that is not Debian 12 is served by Debian's usual mirror.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from usina.core.errors import Unavailable
from usina.services.images.workshop import Workshop

SUITE = "bookworm"
_KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
STANDARD_SOURCES = "\n".join(
    f"deb http://deb.debian.org/{path} {suite} main"
    for path, suite in (
        ("debian", SUITE),
        ("debian", f"{SUITE}-updates"),
        ("debian-security", f"{SUITE}-security"),
    )
)
_SUITES = {SUITE, f"{SUITE}-updates", f"{SUITE}-security"}
_ONE_LINE = re.compile(r"deb\s+(?:\[(?P<options>[^\]]*)\]\s+)?(?P<uri>\S+)\s+(?P<suite>\S+)\s+(?P<parts>.+)")


def sources(etc: Path = Path("/etc/apt")) -> list[str]:
    """apt lines for Debian 12 "main": the host's own where it has them, else Debian's usual mirror.

    Every line is signed by Debian's archive key.
    """
    found: list[str] = []
    for uri, suite, parts in _configured(etc):
        line = f"deb [signed-by={_KEYRING}] {uri} {suite} main"
        if suite.rstrip("/") in _SUITES and "main" in parts and line not in found:
            found.append(line)
    if any(f" {SUITE} main" in line for line in found):
        return found
    return [line.replace("deb ", f"deb [signed-by={_KEYRING}] ", 1) for line in STANDARD_SOURCES.splitlines()]


def _configured(etc: Path) -> Iterator[tuple[str, str, list[str]]]:
    for path in [etc / "sources.list", *sorted(etc.glob("sources.list.d/*"))]:
        if not path.is_file():
            continue
        text = path.read_text(errors="replace")
        if path.suffix == ".sources":
            yield from _stanzas(text)
        elif path.suffix == ".list":
            for line in text.splitlines():
                if match := _ONE_LINE.match(line.strip()):
                    yield match["uri"], match["suite"], match["parts"].split()


def _stanzas(text: str) -> Iterator[tuple[str, str, list[str]]]:
    """deb822 stanzas, see sources.list(5)."""
    kept = "\n".join(line for line in text.splitlines() if not line.startswith("#"))
    for stanza in re.split(r"\n\s*\n", kept):
        fields = {
            key.lower(): value.split() for key, value in re.findall(r"^([\w-]+):\s*(.*(?:\n\s+.*)*)", stanza, re.M)
        }
        if fields.get("enabled") == ["no"] or "deb" not in fields.get("types", []):
            continue
        for uri in fields.get("uris", []):
            for suite in fields.get("suites", []):
                yield uri, suite, fields.get("components", [])


@dataclass(slots=True)
class Packages:
    """Fetches packages and unpacks them, without installing anything."""

    shop: Workshop

    async def refresh(self) -> None:
        """Read the package lists. Needed once before `unpack`.

        Raises `Unavailable` when the mirror does not answer.
        """
        if not Path(_KEYRING).exists():
            raise Unavailable(
                "Debian's archive key is missing; run: apt-get install debian-archive-keyring",
                code="tools-missing",
            )
        root = self._root
        for folder in ("lists/partial", "cache/archives/partial"):
            (root / folder).mkdir(parents=True, exist_ok=True)
        (root / "sources.list").write_text("\n".join(sources()) + "\n")
        (root / "status").touch()
        await self.shop.run("apt-get", *self._options, "-qq", "--error-on=any", "update")

    async def depends(self, package: str) -> list[str]:
        """Names of the packages that `package` needs directly."""
        lines: list[str] = []
        await self.shop.run("apt-cache", *self._options, "depends", package, on_line=lines.append)
        return [line.split()[1] for line in lines if line.strip().startswith("Depends:")]

    async def unpack(self, names: list[str], into: Path) -> None:
        """Download the newest version of each package in `names` and lay its files out under `into`."""
        store = self._root / "debs"
        store.mkdir(exist_ok=True)
        command = 'cd "$1" && shift && exec "$@"'
        await self.shop.run("sh", "-c", command, "sh", store, "apt-get", *self._options, "-qq", "download", *names)
        for package in sorted(store.glob("*.deb")):
            await self.shop.run("dpkg-deb", "-x", package, into)
            package.unlink()

    @property
    def _root(self) -> Path:
        return self.shop.place / "apt"

    @property
    def _options(self) -> list[str]:
        root = self._root
        pairs = {
            "Dir::State": f"{root}/",
            "Dir::State::lists": f"{root}/lists",
            "Dir::State::status": f"{root}/status",
            "Dir::Cache": f"{root}/cache",
            "Dir::Etc::sourcelist": f"{root}/sources.list",
            "Dir::Etc::sourceparts": "-",
            "APT::Architecture": "amd64",
            "APT::Architectures": "amd64",
            "APT::Sandbox::User": "root",
            "APT::Get::List-Cleanup": "0",
            "Acquire::Languages": "none",
            "Acquire::Retries": "3",
        }
        return [part for key, value in pairs.items() for part in ("-o", f"{key}={value}")]


async def acquire_settings(shop: Workshop) -> str:
    """How this host's apt reaches its mirrors (proxies, certificates), as an apt configuration."""
    lines: list[str] = []
    for method in ("http", "https"):
        await shop.run("apt-config", "dump", f"Acquire::{method}", on_line=lines.append)
    return "\n".join([*lines, 'Acquire::Languages "none";', 'Acquire::Retries "3";']) + "\n"
