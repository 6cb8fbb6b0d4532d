"""Shelf of guards: what looks at texts of requests and answers. One folder each, which exports `PLUGIN`; see
`usina.ports.guard`."""
