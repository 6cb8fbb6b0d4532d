"""Another site as the fallback of an endpoint: its `/v1` is an external upstream like any other."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import openai

from usina.core.tenancy import Role
from usina.testing.llm import Parrot, Site, parrots, running_gateway, token_of
from usina.testing.waiting import eventually


def site() -> tuple[Site, str]:
    made = Site()
    made.project("lab")
    return made, token_of(made.key("ann", project="prj-lab", tnt_1=Role.MEMBER))


async def test_a_request_goes_on_at_another_site_and_is_charged_at_both(tmp_path: Path) -> None:
    (here, key), (there, key_there) = site(), site()
    broken, works = Parrot(status=503), Parrot(words=("from", " there"))
    async with parrots(broken, works) as (bad, good):
        there.endpoint("chat", "prj-lab", [good])
        async with running_gateway(tmp_path / "there", there) as other:
            here.endpoint("chat", "prj-lab", [bad], fallback=("elsewhere",))
            far = here.endpoint("elsewhere", "prj-lab", [other.port], runtime="external", url=other.url)
            far = replace(far, spec=replace(far.spec, variant=replace(far.spec.variant, model="chat")))
            here.endpoints[far.id] = replace(far, secret=key_there)
            async with running_gateway(tmp_path / "here", here) as running:
                async with openai.AsyncOpenAI(base_url=running.url, api_key=key, max_retries=0) as client:
                    hi = [{"role": "user", "content": "hi"}]
                    answer = await client.chat.completions.create(model="chat", messages=hi)  # type: ignore[arg-type]
                assert answer.choices[0].message.content == "from there"

                async def used() -> list[tuple[str, int]]:
                    return [
                        (one.project, one.prompt + one.completion)
                        for gateway in (running, other)
                        for one in gateway.ledger.usage
                    ]

                assert await eventually(used, lambda found: len(found) == 2) == [("prj-lab", 9), ("prj-lab", 9)]
