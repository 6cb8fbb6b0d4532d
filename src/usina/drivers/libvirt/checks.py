from usina.ports.driver import Check


async def diagnose() -> list[Check]:
    return []
