"""Nouns and rules. Pure: no I/O, no framework, no clock."""
