"""Ranges of networks: no two overlap, also when ordered at once, and none is refused for what has gone."""

from __future__ import annotations

import asyncio
from typing import Any

from usina.testing.factory import Running


async def order(client: Any, name: str, cidr: str | None = None) -> int:
    body = {"name": name} | ({"cidr": cidr} if cidr else {})
    return int((await client.post("/networks", json=body)).status_code)


async def test_of_overlapping_ranges_ordered_at_once_one_is_made(factory: Running) -> None:
    async with factory.client() as client:
        ranges = ["10.20.0.0/16", "10.20.7.0/24", "10.20.0.0/20", "10.20.7.128/26"]
        statuses = await asyncio.gather(*(order(client, f"n{n}", cidr) for n, cidr in enumerate(ranges)))
        made = [cidr for cidr, status in zip(ranges, statuses, strict=True) if status == 201]
        assert "10.20.0.0/16" not in made or len(made) == 1
        assert sorted(set(statuses)) == [201, 409]
        answer = await client.post("/networks", json={"name": "late", "cidr": "10.20.0.0/16"})
        assert (answer.status_code, answer.json()["field"]) == (409, "cidr")


async def test_a_range_is_free_again_and_others_are_never_in_its_way(factory: Running) -> None:
    async with factory.client() as client:
        assert await order(client, "plain") == 201
        assert await order(client, "a", "10.30.0.0/24") == 201
        plain = (await client.get("/networks/plain")).json()["id"]
        await client.delete("/networks/plain")
        await factory.gone(plain, "networks")
        assert await order(client, "b", "10.31.0.0/24") == 201
        a = (await client.get("/networks/a")).json()["id"]
        await client.delete("/networks/a")
        await factory.gone(a, "networks")
        assert await order(client, "c", "10.30.0.0/24") == 201
