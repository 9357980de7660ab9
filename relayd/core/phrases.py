"""The small language in which rules.py names what servers say, and the search for it in a reply.

A phrase is words with spaces between them. a|b: either word. word?: may be missing. word-: any word that starts so.
*: up to six words of anything. Case, punctuation, codes and mail addresses in the reply do not matter.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

TEXT_LIMIT = 2000
"""Characters of a reply that are looked at."""

_ADDRESS = re.compile(r"<?[^\s<>()\[\]\"',;:]{1,64}@[a-z0-9.-]{1,255}>?")
_CODES = re.compile(r"(?<![\d.])[245]\d\d[ -]#?[245]\.\d{1,3}\.\d{1,3}\b|(?<![\d.])[245]\.\d{1,3}\.\d{1,3}(?![\d.])")
_WORD = re.compile(r"[a-z0-9]+(?:'[a-z]+)?|[^\x00-\xa0]+")
_CONTRACTED = (
    ("\u2019", "'"), ("can't", "cannot"), ("can not", "cannot"), ("n't", " not"), ("e-mail", "email"),
    ("mail box", "mailbox"),
)  # fmt: skip


def plain(text: str) -> str:
    """The words of a reply: lower case, one space before and behind each; no codes, addresses or punctuation."""
    text = text[:TEXT_LIMIT].lower()
    for long, short in _CONTRACTED:
        if long in text:
            text = text.replace(long, short)
    if "@" in text:
        text = _ADDRESS.sub(" ", text)
    return f" {' '.join(_WORD.findall(_CODES.sub(' ', text)))} "


@dataclass(frozen=True, slots=True)
class Phrase:
    """One phrase, ready to be looked for."""

    text: str
    keys: tuple[str, ...]
    """Words of which the text has at least one where the phrase fits; none: it has to be tried."""
    others: tuple[frozenset[str], ...]
    """Of each of these, too: cheaper to ask than to search."""
    stems: tuple[str, ...] = ()
    """Without keys: the text has one of these somewhere."""

    def pattern(self) -> str:
        """As a regular expression over `plain` text. Its repetitions are bounded: it takes linear time."""
        return "".join(map(_element, self.text.split())) + "(?= )"


def parse(text: str) -> Phrase:
    """The phrase that is written so. The longest word that cannot be missing becomes its key."""
    needed = [tuple(word.split("|")) for word in text.split() if word != "*" and not word.endswith("?")]
    whole = [words for words in needed if all(each.isascii() and not each.endswith("-") for each in words)]
    if not whole:
        stems = tuple(word.removesuffix("-") for word in min(needed, key=len, default=()))
        return Phrase(text, (), (), stems)
    best = max(whole, key=lambda words: (-len(words), min(map(len, words))))
    return Phrase(text, best, tuple(frozenset(words) for words in whole if words is not best))


def _element(word: str) -> str:
    if word == "*":
        return r"(?: \S+){0,6}?"
    optional = word.endswith("?")
    found = "|".join(_one(each) for each in word.removesuffix("?").split("|"))
    return f"(?: (?:{found}))?" if optional else f" (?:{found})"


def _one(word: str) -> str:
    if not word.isascii():
        return rf"[^ ]*{re.escape(word)}[^ ]*"  # Japanese has no spaces between words
    return re.escape(word[:-1]) + r"\S*" if word.endswith("-") else re.escape(word)


class Index:
    """Finds which of many lists of phrases fit a text, looking only at those that share a word with it."""

    def __init__(self, lists: Sequence[Sequence[str]]) -> None:
        """`lists[n]`: the phrases of row n."""
        self._by_word: dict[str, list[tuple[int, Phrase]]] = {}
        self._always: list[tuple[int, Phrase]] = []
        self._foreign: list[tuple[int, Phrase]] = []
        self._compiled: dict[str, re.Pattern[str]] = {}
        for row, phrases in enumerate(lists):
            for phrase in map(parse, phrases):
                for key in phrase.keys:
                    self._by_word.setdefault(key, []).append((row, phrase))
                if not phrase.keys:
                    (self._always if phrase.text.isascii() else self._foreign).append((row, phrase))

    def candidates(self, text: str) -> dict[int, list[Phrase]]:
        """The phrases that may fit, by row. `text` is `plain`."""
        found: dict[int, list[Phrase]] = {}
        words = set(text.split())
        for word in words & self._by_word.keys():
            for row, phrase in self._by_word[word]:
                for others in phrase.others:
                    if words.isdisjoint(others):
                        break
                else:
                    found.setdefault(row, []).append(phrase)
        for row, phrase in self._always if text.isascii() else self._always + self._foreign:
            for stem in phrase.stems:
                if stem in text:
                    found.setdefault(row, []).append(phrase)
                    break
        return found

    def fits(self, phrases: Sequence[Phrase], text: str) -> bool:
        """Whether one of the phrases stands in the `plain` text."""
        return any(self._pattern(phrase).search(text) for phrase in phrases)

    def _pattern(self, phrase: Phrase) -> re.Pattern[str]:
        # compiled when first needed: most phrases never are
        found = self._compiled.get(phrase.text)
        if found is None:
            found = self._compiled[phrase.text] = re.compile(phrase.pattern())
        return found

    def patterns(self) -> Iterator[re.Pattern[str]]:
        """All patterns, for tests."""
        for entries in (*self._by_word.values(), self._always, self._foreign):
            for _, phrase in entries:
                yield self._pattern(phrase)
