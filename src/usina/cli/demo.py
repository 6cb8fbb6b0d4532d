"""Placeholder."""


def demo() -> None:
    """Show it.

    Examples:
      usina demo
    """
