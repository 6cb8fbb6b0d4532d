"""What the guard knows by sight. Expressions are RE2's, which take time in proportion to the text, whatever it is.

An expression finds candidates; where there is a checksum, it decides how much of a candidate is meant (0: nothing).
Every match is shorter than the window of streams, but for private keys, which are known by their first line.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import re2

Measure = Callable[[str], int]
"""Candidate → how many of its characters are meant."""


@dataclass(frozen=True, slots=True)
class Recogniser:
    name: str
    expression: Any
    measure: Measure = len


def luhn(text: str) -> int:
    """Payment cards, ISO/IEC 7812: 13 to 19 digits, in groups or not. The longest beginning that is one."""
    ends = [n for n, sign in enumerate(text) if sign.isdigit()]
    for count in range(min(19, len(ends)), 12, -1):
        end = ends[count - 1] + 1
        if end < len(text) and text[end].isdigit():
            continue
        digits = [int(text[n]) for n in ends[:count]]
        doubled = [d if n % 2 == 0 else (d * 2 - 9 if d > 4 else d * 2) for n, d in enumerate(reversed(digits))]
        if sum(doubled) % 10 == 0 and any(digits):
            return end
    return 0


def iban(text: str) -> int:
    """ISO 13616: the remainder by 97 is 1. The longest beginning that is one, at the end of a group or not."""
    for end in range(len(text), 14, -1):
        if end < len(text) and text[end].isalnum():
            continue
        plain = text[:end].replace(" ", "").upper()
        if 15 <= len(plain) <= 34 and text[end - 1] != " ":
            number = "".join(str(int(sign, 36)) for sign in plain[4:] + plain[:4])
            if int(number) % 97 == 1:
                return end
    return 0


def address(text: str) -> int:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return 0
    return len(text)


def _phone(text: str) -> int:
    return len(text) if 8 <= sum(sign.isdigit() for sign in text) <= 15 else 0


BUILT_IN = {
    one.name: one
    for one in (
        Recogniser("email", re2.compile(r"[A-Za-z0-9._%+-]{1,64}@[A-Za-z0-9.-]{1,120}\.[A-Za-z]{2,24}\b")),
        Recogniser("iban", re2.compile(r"\b[A-Za-z]{2}[0-9]{2}(?: ?[A-Za-z0-9]){11,30}\b"), iban),
        Recogniser("card", re2.compile(r"\b[0-9](?:[ -]?[0-9]){12,18}\b"), luhn),
        Recogniser("phone", re2.compile(r"\+[1-9](?:[ ./()-]{0,2}[0-9]){7,14}\b"), _phone),
        Recogniser(
            "ip",
            re2.compile(r"\b(?:[0-9]{1,3}\.){3}[0-9]{1,3}\b|(?:[0-9A-Fa-f]{1,4}:|:){2,7}(?::|[0-9A-Fa-f]{1,4}\b)"),
            address,
        ),
        Recogniser(
            "secret",
            re2.compile(
                r"-----BEGIN [A-Z0-9 ]{0,40}PRIVATE KEY-----[A-Za-z0-9+/=\\\s]*"
                r"(?:-----END [A-Z0-9 ]{0,40}PRIVATE KEY-----)?"
                r"|\b(?:AKIA|ASIA)[0-9A-Z]{16}\b|\busk-[0-9A-Za-z]{4,64}-[0-9A-Za-z_-]{16,128}"
                r"|\bgh[pousr]_[0-9A-Za-z]{36,100}\b|\bsk-[0-9A-Za-z_-]{20,180}"
            ),
        ),
    )
}
