"""What the letters of `mambavision.layout.LETTERS` may do in a search: stand alone in a stage, or be placed in it."""

from __future__ import annotations

from mambavision.layout import LETTERS

BASES = tuple(letter for letter, kind in LETTERS.items() if kind.scans and not kind.attends)
"""Letters that scan and do no more: the blocks of a stage among which others are placed."""
PLACED = tuple(letter for letter, kind in LETTERS.items() if kind.attends)
"""Letters with attention: the blocks whose number and places are searched."""
MIXED = tuple(base + placed for placed in PLACED for base in BASES)
"""The pairs of letters that one stage may choose from, the base first."""


def keys_of(letter: str) -> tuple[str, ...]:
    """The keys of a stage in the YAML that bear on a letter, beside those that bear on all."""
    return tuple("head_dim" if name == "heads" else name for name in LETTERS[letter].fields)


def with_key(key: str) -> tuple[str, ...]:
    """The letters that a key of a stage bears on."""
    return tuple(letter for letter in LETTERS if key in keys_of(letter))


def base_of(blocks: str) -> str:
    """The first letter of `BASES` in a string of letters; empty without one."""
    return next((letter for letter in blocks if letter in BASES), "")


def placed_of(blocks: str) -> str:
    """The first letter of `PLACED` in a string of letters; empty without one."""
    return next((letter for letter in blocks if letter in PLACED), "")
