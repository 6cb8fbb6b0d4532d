"""The shelf of drivers: one folder each, found by discovery. They do not know each other."""
