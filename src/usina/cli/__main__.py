"""``python -m usina.cli``: the same as ``usina``."""

from usina.cli.main import run

run()
