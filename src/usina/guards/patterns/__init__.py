"""Patterns: what is known by sight, such as e-mail addresses, cards and keys, and the operator's own words."""

from usina.guards.patterns.guard import make
from usina.ports.guard import GuardPlugin

PLUGIN = GuardPlugin(
    name="patterns",
    summary="Redacts or denies what it knows by sight: email, iban, card, phone, ip, secret, and words of your own.",
    settings={
        "redact": "What to put [name] in place of: of email, iban, card, phone, ip, secret, words, expressions.",
        "deny": "What to refuse the whole text for; the same names.",
        "words": "Words of your own, in any case.",
        "expressions": "Regular expressions of your own, as RE2 has them.",
        "answers": "Whether answers are looked at too; true unless said otherwise.",
    },
    make=make,
)
