"""Reads a pickle into plain records: no class is looked up, nothing is called, nothing is set.

`pickle.Unpickler` builds the objects that a pickle asks for, and even where it admits few classes,
a pickle can set their attributes or ask for gigabytes. This reads the few instructions that DCP's
metadata and torch's tensors consist of, and builds records of what they say; whoever takes
something out of a record checks its type. Time and memory grow with the length of the pickle and
with nothing else.
"""

from __future__ import annotations

import pickletools
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import TypeVar

T = TypeVar("T")

PERSISTENT = "persistent"
"""The name of the record of an object that is not in the pickle but beside it."""


class PickleRefused(ValueError):
    """The pickle is damaged, or does what the program that wrote it never does."""


@dataclass(frozen=True)
class Name:
    """The name of a class or function, such as `torch.Size`."""

    name: str


@dataclass
class Record:
    """An object that the pickle describes: the class `name`, called with `arguments`, and the state
    that it was given afterwards, if any."""

    name: str
    arguments: tuple[object, ...]
    state: object = None


@dataclass
class Pairs:
    """A dictionary, whose keys are not hashed and may repeat."""

    items: list[tuple[object, object]] = field(default_factory=list)


class _Mark:
    """Where the values that one instruction takes begin on the stack."""


def read_inert(data: bytes, allowed: Collection[str]) -> object:
    """Return what `data` describes: `Record`, `Pairs`, `Name`, list, tuple, text, number or None.

    Raises `PickleRefused` for anything unusual, and for names that are not `allowed`.
    """
    machine = _Machine(allowed)
    try:
        for opcode, argument, _ in pickletools.genops(data):
            machine.execute(opcode.name, argument)
    except PickleRefused:
        raise
    except (ValueError, IndexError, KeyError, TypeError, AttributeError) as error:
        raise PickleRefused(f"it is not a whole pickle ({error})") from None
    return machine.result()


def whole_numbers(value: object) -> tuple[int, ...]:
    """Return `value` if it is a tuple of integers from 0 to 2**63 - 1. Raises `PickleRefused`."""
    if not isinstance(value, tuple):
        raise PickleRefused("a shape is missing")
    for number in value:
        if type(number) is not int or not 0 <= number < 2**63:
            raise PickleRefused("a number is missing, negative or too large")
    return value


class _Machine:
    """The stack and the memo of pickle's virtual machine."""

    def __init__(self, allowed: Collection[str]) -> None:
        self._allowed = allowed
        self._stack: list[object] = []
        self._memo: dict[int, object] = {}

    def result(self) -> object:
        if len(self._stack) != 1:
            raise PickleRefused("it does not hold one object")
        return self._stack[0]

    def execute(self, opcode: str, argument: object) -> None:
        push, pop = self._stack.append, self._stack.pop
        match opcode:
            case "PROTO" | "FRAME" | "STOP":
                pass
            case "BINUNICODE" | "SHORT_BINUNICODE" | "BININT" | "BININT1" | "BININT2" | "LONG1":
                push(argument)
            case "NONE":
                push(None)
            case "NEWTRUE" | "NEWFALSE":
                push(opcode == "NEWTRUE")
            case "MEMOIZE":
                self._memo[len(self._memo)] = self._stack[-1]
            case "BINPUT" | "LONG_BINPUT":
                assert isinstance(argument, int)
                self._memo[argument] = self._stack[-1]
            case "BINGET" | "LONG_BINGET":
                assert isinstance(argument, int)
                push(self._memo[argument])
            case "MARK":
                push(_Mark())
            case "EMPTY_TUPLE":
                push(())
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                size = int(opcode[-1])
                push(tuple(reversed([pop() for _ in range(size)])))
            case "TUPLE":
                push(tuple(self._after_mark()))
            case "EMPTY_LIST":
                push([])
            case "APPEND":
                value = pop()
                self._top(list).append(value)
            case "APPENDS":
                values = self._after_mark()
                self._top(list).extend(values)
            case "EMPTY_DICT":
                push(Pairs())
            case "SETITEM":
                value, key = pop(), pop()
                self._top(Pairs).items.append((key, value))
            case "SETITEMS":
                values = self._after_mark()
                self._top(Pairs).items.extend(zip(values[::2], values[1::2], strict=True))
            case "GLOBAL":
                push(self._name(str(argument).replace(" ", ".", 1)))
            case "STACK_GLOBAL":
                name, module = pop(), pop()
                # The text of anything else may be longer than any memory: lists may share lists.
                if not (isinstance(module, str) and isinstance(name, str)):
                    raise PickleRefused("it asks for something that has no name")
                push(self._name(f"{module}.{name}"))
            case "NEWOBJ" | "REDUCE":
                arguments, called = pop(), pop()
                if not (isinstance(called, Name) and isinstance(arguments, tuple)):
                    raise PickleRefused("it calls something other than a class")
                push(Record(called.name, arguments))
            case "BINPERSID":
                push(Record(PERSISTENT, (pop(),)))
            case "BUILD":
                state, record = pop(), self._top(Record)
                if record.state is not None:
                    raise PickleRefused("it changes an object twice")
                record.state = state
            case _:
                raise PickleRefused(f"it has the instruction {opcode}, which DCP never writes")

    def _name(self, name: str) -> Name:
        if name not in self._allowed:
            raise PickleRefused(
                f"it asks for {name[:200]!r}, which is not part of a checkpoint: this program did "
                "not write it. None of it was executed"
            )
        return Name(name)

    def _after_mark(self) -> list[object]:
        values: list[object] = []
        while not isinstance(value := self._stack.pop(), _Mark):
            values.append(value)
        return values[::-1]

    def _top(self, kind: type[T]) -> T:
        top = self._stack[-1]
        if not isinstance(top, kind):
            raise PickleRefused(f"it treats {type(top).__name__} as {kind.__name__}")
        return top
