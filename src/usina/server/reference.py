"""Reference pages written from the code itself: ``python -m usina.server.reference`` renews ``docs/reference``."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from usina.server import discovery


def drivers_page() -> str:
    """Every driver that discovery finds, with its options."""
    lines = ["# Drivers", "", "Written from the plugins; see `usina host add --help`.", ""]
    for name, plugin in sorted(discovery.drivers().plugins.items()):
        lines += [f"## {name}", "", plugin.summary, "", "| option | meaning |", "|---|---|"]
        lines += [f"| `{option}` | {meaning} |" for option, meaning in plugin.options.items()]
        lines.append("")
    return "\n".join(lines)


def runtimes_page() -> str:
    """Every runtime that discovery finds, with what members and operators can say."""
    lines = ["# Runtimes", "", "Written from the plugins; see `usina endpoint create --help`.", ""]
    for name, plugin in sorted(discovery.runtimes().plugins.items()):
        lines += [f"## {name}", "", plugin.summary, ""]
        for title, words in (("option of an endpoint", plugin.options), ("setting of the site", plugin.settings)):
            if words:
                lines += [
                    f"| {title} | meaning |",
                    "|---|---|",
                    *(f"| `{one}` | {m} |" for one, m in words.items()),
                    "",
                ]
    return "\n".join(lines)


def guards_page() -> str:
    """Every guard that discovery finds, with the operator's settings."""
    lines = ["# Guards", "", "Written from the plugins; see the guide of models and `usina up --guards`.", ""]
    for name, plugin in sorted(discovery.guards().plugins.items()):
        lines += [f"## {name}", "", plugin.summary, "", "| setting | meaning |", "|---|---|"]
        lines += [f"| `{setting}` | {meaning} |" for setting, meaning in plugin.settings.items()]
        lines.append("")
    return "\n".join(lines)


def openapi_document() -> dict[str, Any]:
    """The native door's OpenAPI document, without a factory."""
    from usina.facades.native.api import application

    return application().openapi()


def api_page() -> str:
    """Every route, with what it does."""
    lines = ["# The native API", "", "Written from the OpenAPI document, which is served at `/api/openapi.json`.", ""]
    lines += ["| method | path | what it does |", "|---|---|---|"]
    for path, item in openapi_document()["paths"].items():
        lines += [f"| {method.upper()} | `/api{path}` | {op['summary']} |" for method, op in item.items()]
    return "\n".join(lines) + "\n"


PAGES = {"drivers.md": drivers_page, "runtimes.md": runtimes_page, "guards.md": guards_page, "api.md": api_page}


def write(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, page in PAGES.items():
        (folder / name).write_text(page())
    (folder / "openapi.json").write_text(json.dumps(openapi_document(), indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    write(Path(sys.argv[1] if len(sys.argv) > 1 else "docs/reference"))
