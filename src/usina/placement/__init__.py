"""A snapshot of providers and a request in, a choice or a counted refusal out. Pure."""

from usina.placement.fit import Refusal, Shortlist, place, place_within

__all__ = ["Refusal", "Shortlist", "place", "place_within"]
