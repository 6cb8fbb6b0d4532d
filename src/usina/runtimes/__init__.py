"""Shelf of runtimes: programs that serve models. One folder each, which exports `PLUGIN`; see `usina.ports.runtime`."""
