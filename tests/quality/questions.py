"""Questions about Python, made by hand, and where its language reference answers them.

A right passage is told by a phrase that stands in it and in no other, blanks and line ends being one. Half of the
questions name what they are about, as one does who knows Python; the other half describe it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Question:
    """A question and the phrases of its right passages."""

    text: str
    phrases: tuple[str, ...]

    def right(self, texts: Mapping[T, str]) -> set[T]:
        """Keys of the texts that answer it."""
        return {key for key, text in texts.items() if any(phrase in " ".join(text.split()) for phrase in self.phrases)}


def _ask(text: str, *phrases: str) -> Question:
    return Question(text, phrases)


QUESTIONS = (
    # What it is called is known.
    _ask(
        "What does str.partition return if the separator is not found?",
        "Split the string at the first occurrence of *sep*",
    ),
    _ask("str.casefold compared with lower", "Casefolding is similar to lowercasing"),
    _ask("How does str.removesuffix work?", "If the string ends with the *suffix* string"),
    _ask("What does str.zfill do with a sign prefix?", "Return a copy of the string left filled with ASCII"),
    _ask("Which keyword arguments does splitlines take?", "Return a list of the lines in the string"),
    _ask(
        "What must __hash__ return when __eq__ is defined?",
        "The only required property is that objects which compare equal",
    ),
    _ask("When is __del__ called?", "Called when the instance is about to be destroyed"),
    _ask("What is __length_hint__ for?", 'Called to implement "operator.length_hint()"'),
    _ask("What does __missing__ do in a dict subclass?", "when key is not in the dictionary"),
    _ask("What does __set_name__ receive?", "Automatically called at the time the owning class *owner* is created"),
    _ask(
        "What happens with __slots__ if a __weakref__ is wanted?", "Without a *__weakref__* variable for each instance"
    ),
    _ask(
        "How does __getattribute__ differ from __getattr__?", "Called unconditionally to implement attribute accesses"
    ),
    _ask("What does __prepare__ return for a metaclass?", "has been identified, then the class namespace is prepared"),
    _ask(
        "What does the nonlocal statement do?",
        'The "nonlocal" statement causes the listed identifiers to refer to',
        'The "nonlocal" statement causes corresponding names to refer',
    ),
    _ask("What does pdb.post_mortem do?", "Enter post-mortem debugging of the given *traceback* object"),
    _ask(
        "What does slice.indices compute?", "computes information about the slice that the slice object would describe"
    ),
    _ask("What does __match_args__ do?", "When using a class name in a pattern, positional arguments"),
    _ask("What does from __future__ import do?", "A *future statement* is a directive to the compiler"),
    _ask("What does the AS pattern in match do?", "An AS pattern matches an OR pattern on the left"),
    _ask("What does __aexit__ do in async with?", "async with EXPRESSION as TARGET"),
    # It is described.
    _ask(
        "How do I handle two kinds of errors with one handler?",
        "of the exception object, or a tuple containing an item",
        "or a tuple of exception types",
    ),
    _ask(
        "Is my cleanup code run even if I return early?",
        'When a "return", "break" or "continue" statement is executed in the "try" suite',
    ),
    _ask(
        "Why is my default list argument shared between calls?",
        "Default parameter values are evaluated from left to right when the function definition is executed",
    ),
    _ask(
        "How do I make a function that takes any number of arguments?",
        "it is initialized to a tuple receiving any excess positional parameters",
        "in this case, that formal parameter receives a tuple containing the excess positional arguments",
    ),
    _ask("How do I cut off the beginning of a text if it matches?", "If the string starts with the *prefix* string"),
    _ask(
        "How do I glue a list of texts together with commas?",
        "Return a string which is the concatenation of the strings in *iterable*",
    ),
    _ask(
        "How can I tell whether a text contains only digits?",
        'Return "True" if all characters in the string are digits',
    ),
    _ask(
        "How do I replace all occurrences of a word in a text?",
        "with all occurrences of substring *old* replaced by *new*",
    ),
    _ask("How do I print a number as a percentage?", "Expressing a percentage"),
    _ask(
        "Why does a class body's variable not show inside its methods?", "does not extend to the code blocks of methods"
    ),
    _ask(
        "How do I use an object after a with block without leaking the resource?",
        'The context manager\u2019s "__exit__()" method is invoked',
    ),
    _ask(
        "How do I use a resource whose opening and closing must be awaited?",
        "An *asynchronous context manager* is a *context manager*",
    ),
    _ask(
        "What is the order in which operands of a chained comparison are evaluated?",
        "Comparisons can be chained arbitrarily",
    ),
    _ask(
        "Why are two equal numbers of different types found under one dictionary key?",
        "Numeric types used for keys obey the normal rules",
    ),
    _ask("Why does my list of lists change in every row when I set one element?", "Values of *n* less than"),
    _ask(
        "How do I make instances of my class callable like functions?",
        "Called when the instance is \u201ccalled\u201d as a function",
    ),
    _ask(
        "How do I make my own class usable with the plus operator when it stands on the right side?",
        "with reflected (swapped) operands",
    ),
    _ask("How do I stop the program at a line and look at variables?", "The typical usage to break into the debugger"),
    _ask(
        "How can I load a module only from my own package?",
        "When specifying what module to import you do not have to specify the absolute name",
    ),
    _ask(
        "What happens if I divide by zero with the modulo operator?",
        'A zero right argument raises the "ZeroDivisionError" exception',
    ),
    _ask("How do I swap two variables in one statement?", '(for example "a, b = b, a" swaps two variables)'),
    _ask(
        "How do I show the original cause when I convert one error into another?",
        "clause is used for exception chaining",
    ),
    _ask("How do I leave a block empty for now?", "is a null operation"),
    _ask(
        "How do I compare a value with a fixed set of shapes and pull parts out of it?",
        "The match statement is used for pattern matching",
    ),
    _ask("Which objects count as false?", "Here are most of the built-in objects considered false"),
    _ask(
        "How do I keep a dictionary's items in the order they were added?",
        "Dictionaries preserve insertion order, meaning",
    ),
    _ask(
        "Why can a text not be changed in place?", "A string is a sequence of values that represent Unicode code points"
    ),
    _ask(
        "How are underscores in big numbers written for readability?",
        "Underscores are ignored for determining the numeric value",
    ),
)
