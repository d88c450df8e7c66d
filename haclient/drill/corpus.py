"""A real corpus that every CPython carries: its language reference, and questions that people ask of it.

Decision made here: ``pydoc_data.topics`` (what ``help("try")`` shows) is cut where its authors cut it, at sections
and paragraphs, never in a sentence. Many sections are in several topics ("try" is in "compound" too); each is kept
once, under the narrowest topic, so that the best passage for a question is one passage and not a tie of two.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby
from typing import Final, final

#: A passage grows by whole paragraphs until it has this many words.
_ENOUGH_WORDS = 60
#: A rule under a heading, as reStructuredText draws it, and the line above it.
_HEADING = re.compile(r"^(?P<title>\S.*)\n(?P<rule>[*=\-~^#\"])(?P=rule){2,}[ ]*\n", re.MULTILINE)
#: "str.split(sep=None, maxsplit=-1)" at the margin.
_DEFINITION = re.compile(r"(?:class )?(?P<name>[\w.]+)\(.*")
_BLANK = re.compile(r"\n[ \t]*\n+")


@final
@dataclass(frozen=True, slots=True)
class Passage:
    """A piece of text to be found.

    Attributes:
        topic: Key of ``pydoc_data.topics``.
        title: What it defines (``str.split()``), else the heading of its section.
        text: Whole paragraphs.
    """

    topic: str
    title: str
    text: str

    @property
    def words(self) -> str:
        """What is embedded: the text under its heading."""
        return f"{self.title}\n{self.text}"


@final
@dataclass(frozen=True, slots=True)
class Question:
    """A question and the topics that answer it."""

    text: str
    topics: frozenset[str]


def read_corpus() -> list[Passage]:
    """Return the passages of this interpreter's own language reference, in a fixed order."""
    from pydoc_data.topics import topics  # noqa: PLC0415 - half a megabyte that only the demo needs

    return split(topics)


def read_documents() -> dict[str, str]:
    """Return the same text as one document a topic, for those who cut documents themselves."""
    documents: dict[str, str] = {}
    for (topic, title), passages in groupby(read_corpus(), key=lambda passage: (passage.topic, passage.title)):
        section = "\n\n".join([title, *(passage.text for passage in passages)])
        documents[topic] = f"{documents[topic]}\n\n\n{section}" if topic in documents else section
    return documents


def split(topics: Mapping[str, str]) -> list[Passage]:
    """Cut topics into passages; text that is in several topics is kept under the shortest of them."""
    seen: set[str] = set()
    passages: list[Passage] = []
    for topic in sorted(topics, key=lambda name: (len(topics[name]), name)):
        for title, body in _sections(topics[topic], topic):
            new = [p for p in (p.rstrip().strip("\n") for p in _BLANK.split(body)) if p and _key(p) not in seen]
            seen.update(map(_key, new))
            for text in _gather(new):
                defined = _DEFINITION.match(text)
                passages.append(Passage(topic, f"{defined['name']}()" if defined else title.replace('"', ""), text))
    return passages


def _sections(text: str, topic: str) -> Iterator[tuple[str, str]]:
    """Yield heading and body of each section; what stands before the first heading is under the topic's name."""
    title, start = topic, 0
    for heading in _HEADING.finditer(text):
        yield title, text[start : heading.start()]
        title, start = heading["title"].strip(), heading.end()
    yield title, text[start:]


def _gather(paragraphs: Iterable[str]) -> Iterator[str]:
    group: list[str] = []
    count = 0
    for paragraph in paragraphs:
        # A definition ("str.split(...)" at the margin) starts a passage: what follows it, indented, is about it.
        if group and (count >= _ENOUGH_WORDS or _DEFINITION.match(paragraph)):
            yield "\n\n".join(group)
            group, count = [], 0
        group.append(paragraph)
        count += len(paragraph.split())
    if group:
        yield "\n\n".join(group)


def _key(paragraph: str) -> str:
    return " ".join(paragraph.split())


def _ask(text: str, *topics: str) -> Question:
    return Question(text, frozenset(topics))


#: Questions that a newcomer asks, and where the reference answers them.
QUESTIONS: Final[tuple[Question, ...]] = (
    _ask("How do I catch several exceptions in one except clause?", "try", "compound", "exceptions"),
    _ask("When is the finally clause executed?", "try", "compound"),
    _ask("What does except* do with exception groups?", "try", "compound"),
    _ask("How do I raise an exception from another exception?", "raise"),
    _ask("What does assert do when optimization is requested?", "assert"),
    _ask("How do I use a with statement with several context managers?", "with", "context-managers", "compound"),
    _ask("What do __enter__ and __exit__ do?", "context-managers", "with", "typesmethods", "specialnames"),
    _ask("What does the else clause of a for loop do?", "for", "break", "else", "while", "compound"),
    _ask("How does break end a loop?", "break", "while", "for"),
    _ask("What does continue do inside a loop?", "continue", "while", "for"),
    _ask("Is there a statement that does nothing, as a placeholder?", "pass"),
    _ask("What is the difference between global and nonlocal?", "nonlocal", "global", "naming", "execmodel"),
    _ask("How do I write an anonymous function with lambda?", "lambda", "function"),
    _ask("When are default parameter values of a function evaluated?", "function", "compound"),
    _ask("What are decorators of a function definition?", "function", "class", "compound"),
    _ask("How do I pass positional-only or keyword-only arguments?", "function", "calls", "compound"),
    _ask("How are *args and **kwargs unpacked in a call?", "calls", "function"),
    _ask("What does return do inside a generator function?", "return", "yield", "types"),
    _ask("How do I import a name from a module under another name?", "import"),
    _ask("What are relative imports with leading dots?", "import"),
    _ask("How are names resolved in nested scopes?", "naming", "execmodel", "global", "nonlocal"),
    _ask("How do I delete an item or slice of a list with del?", "del", "typesseq-mutable", "typesseq"),
    _ask("What does augmented assignment such as += do?", "augassign"),
    _ask("How does unpacking assign to a target list with a starred target?", "assignment"),
    _ask("How do I annotate a variable with a type?", "assignment", "function"),
    _ask("What values are considered false in a truth test?", "truth", "booleans"),
    _ask("What do the operators and, or, not return?", "booleans", "truth"),
    _ask("How can comparisons be chained, such as a < b < c?", "comparisons", "in"),
    _ask("What is the difference between is and ==?", "comparisons", "in"),
    _ask("Which operator has the highest precedence?", "operator-summary"),
    _ask("How does the power operator bind with unary minus?", "power", "unary", "operator-summary"),
    _ask("What do shifting operators << and >> do?", "shifting", "bitwise", "integers"),
    _ask("How do I write hexadecimal, octal and binary integer literals?", "integers", "numbers", "numeric-types"),
    _ask("How do I write an imaginary number literal?", "imaginary", "numbers"),
    _ask("What do the prefixes r and b mean before a string literal?", "strings"),
    _ask("Which escape sequences are recognized in strings?", "strings"),
    _ask("How do I format numbers with a thousands separator?", "formatstrings"),
    _ask("What is the grammar of a replacement field in str.format?", "formatstrings"),
    _ask("How do I split a string into words?", "string-methods"),
    _ask("How do I strip leading and trailing whitespace from a string?", "string-methods"),
    _ask("How do I check whether a string starts with a prefix?", "string-methods"),
    _ask("How do I get a value from a dictionary with a default?", "typesmapping", "dict"),
    _ask("How do I merge two dictionaries?", "typesmapping", "dict"),
    _ask("How do I insert an element into a list at a position?", "typesseq-mutable", "typesseq"),
    _ask("What is a slice object?", "types", "slicings", "specialnames"),
    _ask("When is __del__ called before an object is destroyed?", "customization", "specialnames", "objects"),
    _ask("What must __hash__ return if I define __eq__?", "customization", "specialnames"),
    _ask("What is the difference between __getattr__ and __getattribute__?", "attribute-access", "specialnames"),
    _ask("How do descriptors with __get__ and __set__ work?", "attribute-access", "specialnames"),
    _ask("What are __slots__ good for?", "attribute-access", "specialnames"),
    _ask("How do I emulate a container with __getitem__ and __len__?", "sequence-types", "specialnames"),
    _ask("How do I overload the + operator with __add__?", "numeric-types", "specialnames"),
    _ask("How do I define a coroutine with async def?", "async", "compound"),
    _ask("What does await do in a coroutine?", "await", "async"),
    _ask("How do I set a breakpoint in the debugger?", "debugger"),
    _ask("Which names are reserved keywords and cannot be identifiers?", "identifiers"),
    _ask("What happens to private names with two leading underscores in a class?", "atom-identifiers", "identifiers"),
    _ask("How do I match patterns with match and case?", "compound"),
    _ask("What does a metaclass do when a class is created?", "customization", "specialnames", "class", "types"),
    _ask("What is the identity of an object and when is it garbage-collected?", "objects"),
)
