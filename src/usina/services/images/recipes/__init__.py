"""The shelf of recipes. A folder each; listed in `usina.services.images.catalogue`."""
