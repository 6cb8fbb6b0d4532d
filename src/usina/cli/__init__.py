"""The `usina` command: a client of the native API, one module per noun.

`main.py` puts it together, `door.py` opens the site, `screen.py` shows, `progress.py` waits.
"""
