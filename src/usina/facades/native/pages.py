"""The reference of the native API as one page, written from the OpenAPI document. Nothing is loaded from elsewhere."""

from __future__ import annotations

from html import escape
from typing import Any

_PAGE = """<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Usina API</title>
<meta name="viewport" content="width=device-width,initial-scale=1"><style>
:root{{--ink:#1b2330;--soft:#667085;--line:#e4e7ec;--bg:#fff;--tint:#f6f7f9;--blue:#175cd3}}
@media(prefers-color-scheme:dark){{:root{{--ink:#e6e9ef;--soft:#98a2b3;--line:#2a3140;--bg:#11151c;--tint:#1a202b;
--blue:#84adff}}}}
*{{box-sizing:border-box}}body{{margin:0;font:15px/1.55 system-ui,sans-serif;color:var(--ink);background:var(--bg)}}
header{{padding:2.5rem 2rem 1rem}}h1{{margin:0;font-size:1.9rem}}header p{{max-width:60ch;color:var(--soft)}}
main{{display:grid;grid-template-columns:11rem 1fr;gap:2rem;padding:0 2rem 4rem;max-width:72rem}}
nav{{position:sticky;top:1rem;align-self:start}}
nav a{{display:block;padding:.2rem 0;color:var(--blue);text-decoration:none}}
h2{{margin:1.5rem 0 .6rem;font-size:1.15rem;text-transform:capitalize}}
details{{border:1px solid var(--line);border-radius:8px;margin:.4rem 0;background:var(--bg)}}
summary{{display:grid;grid-template-columns:4.6rem minmax(16rem,auto) 1fr;gap:.8rem;padding:.5rem .8rem;cursor:pointer}}
summary code{{font-size:.88rem}}summary span:last-child{{color:var(--soft);text-align:right}}
.m{{font:600 .75rem/1.9 ui-monospace,monospace;text-align:center;border-radius:5px;color:#fff;height:1.45rem}}
.get{{background:#1570ef}}.post{{background:#079455}}.put,.patch{{background:#b54708}}.delete{{background:#d92d20}}
.in{{padding:.2rem 1rem 1rem;border-top:1px solid var(--line);background:var(--tint);border-radius:0 0 8px 8px}}
table{{border-collapse:collapse;width:100%;font-size:.9rem}}td{{padding:.25rem .8rem .25rem 0;vertical-align:top}}
td:first-child{{font-family:ui-monospace,monospace;white-space:nowrap}}td:nth-child(2){{color:var(--soft);white-space:nowrap}}
@media(max-width:50rem){{main{{display:block}}nav{{display:none}}summary{{grid-template-columns:4.6rem 1fr}}
summary span:last-child{{display:none}}}}
</style></head><body><header><h1>Usina API</h1><p>{about}</p>
<p>Version {version} · <a href="{root}/openapi.json">OpenAPI 3.1 document</a></p></header>
<main><nav>{menu}</nav><div>{body}</div></main></body></html>"""


def reference(document: dict[str, Any], root: str) -> str:
    """The page for an OpenAPI `document` that is served below `root`."""
    groups: dict[str, list[str]] = {}
    for path, item in document["paths"].items():
        for method, operation in item.items():
            tag = (operation.get("tags") or ["other"])[0]
            groups.setdefault(tag, []).append(_operation(document, root + path, method, operation))
    menu = "".join(f'<a href="#{escape(tag)}">{escape(tag.capitalize())}</a>' for tag in groups)
    body = "".join(f'<h2 id="{escape(tag)}">{escape(tag)}</h2>{"".join(found)}' for tag, found in groups.items())
    info = document["info"]
    about = escape(info.get("description", "")).replace("\n\n", "</p><p>").replace("`", "")
    return _PAGE.format(about=about, version=escape(info["version"]), root=escape(root), menu=menu, body=body)


def _operation(document: dict[str, Any], path: str, method: str, operation: dict[str, Any]) -> str:
    rows = [
        _row(p["name"], p["in"], p.get("schema", {}), p.get("description", "")) for p in operation.get("parameters", [])
    ]
    content = operation.get("requestBody", {}).get("content", {})
    name = content.get("application/json", {}).get("schema", {}).get("$ref", "").rpartition("/")[2]
    for field, schema in document["components"]["schemas"].get(name, {}).get("properties", {}).items():
        rows.append(_row(field, "body", schema, schema.get("description", "")))
    told = escape(operation.get("description", ""))
    statuses = ", ".join(escape(status) for status in operation.get("responses", {}))
    return (
        f'<details><summary><span class="m {escape(method)}">{escape(method.upper())}</span>'
        f"<code>{escape(path)}</code><span>{escape(operation.get('summary', ''))}</span></summary>"
        f'<div class="in"><p>{told}</p><table>{"".join(rows)}</table><p>Answers: {statuses}</p></div></details>'
    )


def _row(name: str, where: str, schema: dict[str, Any], told: str) -> str:
    return f"<tr><td>{escape(name)}</td><td>{escape(where)} · {escape(_kind(schema))}</td><td>{escape(told)}</td></tr>"


def _kind(schema: dict[str, Any]) -> str:
    """A short word for a schema: ``string``, ``integer or null``, ``list of CardIn``."""
    if "anyOf" in schema:
        return " or ".join(dict.fromkeys(_kind(one) for one in schema["anyOf"]))
    if "$ref" in schema:
        return str(schema["$ref"]).rpartition("/")[2]
    if schema.get("type") == "array":
        return f"list of {_kind(schema.get('items', {}))}"
    return str(schema.get("type", "any"))
