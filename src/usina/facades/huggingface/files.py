"""A file of a revision: its headers and its bytes, whole or by range. It is always sent as something to keep, never as
a page: whatever a tenant put there must not run where the console does."""

from __future__ import annotations

import os

from starlette.requests import Request
from starlette.responses import FileResponse, Response

from usina.app import model_files
from usina.app.context import Context
from usina.core.repository import Entry, Revision
from usina.core.units import MiB
from usina.facades.huggingface.address import Address

_TEXT = (".json", ".jsonl", ".md", ".txt", ".jinja", ".py", ".yaml", ".yml", ".gitattributes")


class _Bytes(FileResponse):
    chunk_size = MiB


async def resolve(request: Request, context: Context, at: Address) -> Response:
    revision, entry, path = await model_files.open_file(context, at.name, at.revision, at.path)
    headers = _headers(revision, entry)
    if headers["ETag"] in _tags(request.headers.get("if-none-match", "")):
        return Response(None, 304, headers)
    name = entry.path.rpartition("/")[2]
    kind = "text/plain; charset=utf-8" if name.endswith(_TEXT) else "application/octet-stream"
    return _Bytes(path, headers=headers, media_type=kind, filename=name, stat_result=os.stat(path))


def _headers(revision: Revision, entry: Entry) -> dict[str, str]:
    headers = {
        "X-Repo-Commit": revision.commit,
        "ETag": f'"{entry.etag}"',
        "Cache-Control": "private, no-cache",
        "X-Content-Type-Options": "nosniff",
        "Content-Security-Policy": "default-src 'none'; sandbox",
    }
    if entry.large:
        headers |= {"X-Linked-ETag": f'"{entry.digest}"', "X-Linked-Size": str(entry.size)}
    return headers


def _tags(text: str) -> set[str]:
    return {tag.strip().removeprefix("W/") for tag in text.split(",")}
