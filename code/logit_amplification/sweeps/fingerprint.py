"""Hash the code of a rule together with everything that the code reads.

A rule is more than its text: it reads globals, closes over values, has defaults. All of these are
converted into nested lists, which have the same JSON in every process, and the JSON is hashed.
"""

from __future__ import annotations

import builtins
import dataclasses
import dis
import functools
import hashlib
import importlib
import inspect
import json
import sys
import types
from collections import namedtuple
from collections.abc import Callable, Iterator, Mapping
from enum import Enum
from pathlib import Path
from typing import Any

import numpy
import torch

from ..errors import BadInput

ALLOWED = (
    "None, numbers, text, bytes; tuples, lists, sets and dicts of them; tensors, arrays, enums, "
    "dataclasses; functions, classes and their callable objects; modules"
)
PACKAGE = __name__.partition(".")[0]
# Our modules that a cell of the notebook quotes are read like the cell. The others are identified
# by name, because the engine's version is in the configuration.
QUOTED = (f"{PACKAGE}.logits.", f"{PACKAGE}.engine.reference")
PLAIN = (type(None), bool, int, float, complex, str, bytes, type(Ellipsis))
# Flags about arguments, generators and coroutines, not about how the file was compiled.
FLAGS = (
    inspect.CO_VARARGS
    | inspect.CO_VARKEYWORDS
    | inspect.CO_GENERATOR
    | inspect.CO_COROUTINE
    | inspect.CO_ITERABLE_COROUTINE
    | inspect.CO_ASYNC_GENERATOR
)
READS_GLOBAL = ("LOAD_GLOBAL", "LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS")
MADE_IN_C = (
    types.MemberDescriptorType,
    types.GetSetDescriptorType,
    types.WrapperDescriptorType,
    types.MethodDescriptorType,
    types.ClassMethodDescriptorType,
    type(namedtuple("_", "field").field),
)


def display_name(function: Callable[..., Any]) -> str:
    """Return the name of a rule: its own, that of the function in a partial, or its class's."""
    if isinstance(function, functools.partial):
        return display_name(function.func)
    return getattr(function, "__name__", type(function).__name__)


def fingerprint(function: Callable[..., Any], setting: str = "RULE") -> str:
    """Return 64 hexadecimal digits that change with the function's code and all that it reads.

    The digits are the same in every process with the same version of Python. Raises BadInput if
    `function` is not callable, or if something it reads has no value that could be compared later;
    the message is one line with `setting`, the function's name and the variable.
    """
    if not callable(function):
        raise BadInput(f"{setting} = {function!r:.60}; allowed: a function")
    try:
        read = _Reader(f"{setting} = {display_name(function)!r}").value(function, "")
    except RecursionError:
        raise BadInput(
            f"{setting} = {display_name(function)!r}: what it reads is nested too deeply"
        ) from None
    return hashlib.sha256(_text(read).encode()).hexdigest()


class _Reader:
    """Converts values into nested lists; `where` is the path to a value, as messages name it."""

    def __init__(self, whose: str):
        self.whose = whose
        self.met: list[Any] = []  # in the order met: a second time, it is a number
        self.inside: list[Any] = []  # containers being read: a cycle is a number, too
        self.names: frozenset[str] = frozenset()  # names in the code that is being read

    def value(self, value: Any, where: str) -> Any:
        """Return nested lists that are equal for equal values. Raises BadInput where it cannot."""
        if type(value) in PLAIN:
            # hex, because Python refuses to write very long integers in decimal
            return [type(value).__name__, hex(value) if type(value) is int else repr(value)]
        if named := _name_in_library(value):
            return named
        for kinds, read in READERS:
            if isinstance(value, kinds):
                return read(self, value, where)
        return self._object(value, where)

    def refuse(self, value: Any, where: str) -> BadInput:
        """Return the one-line error about a value that cannot be compared."""
        kind = f"{type(value).__module__}.{type(value).__qualname__}".removeprefix("builtins.")
        what = f"the variable {where}" if where else "it"
        return BadInput(f"{self.whose}: {what} is of type {kind}; allowed: {ALLOWED}")

    # ------------------------------------------------------------------------------------- data

    def _enum(self, value: Enum, where: str) -> Any:
        kind = type(value)
        return ["enum", kind.__qualname__, value.name, self.value(value.value, where)]

    def _written(self, value: Any, where: str) -> Any:
        return [type(value).__name__, repr(value)]

    def _tensor(self, value: torch.Tensor, where: str) -> Any:
        try:
            plain = value.detach().cpu().resolve_conj().resolve_neg().contiguous().reshape(-1)
            content = plain.view(torch.uint8).numpy().tobytes()
        except (RuntimeError, TypeError, NotImplementedError):  # sparse, quantised, without data
            raise self.refuse(value, where) from None
        digest = hashlib.sha256(content).hexdigest()
        return ["tensor", str(value.dtype), list(value.shape), digest]

    def _array(self, value: numpy.ndarray | numpy.generic, where: str) -> Any:
        if value.dtype.hasobject:
            raise self.refuse(value, where)
        digest = hashlib.sha256(value.tobytes()).hexdigest()
        return ["array", repr(value.dtype), list(value.shape), digest]

    def _sequence(self, value: tuple | list, where: str) -> Any:
        return self._contained(
            value, where, lambda: [self.value(v, f"{where}[{n}]") for n, v in enumerate(value)]
        )

    def _dict(self, value: Mapping[Any, Any], where: str) -> Any:
        def read() -> list[Any]:
            return [
                [self.value(key, where), self.value(v, f"{where}[{key!r:.30}]")]
                for key, v in value.items()
            ]

        return self._contained(value, where, read)

    def _set(self, value: set | frozenset, where: str) -> Any:
        # Each with a reader of its own, because the order of a set differs between processes.
        parts = sorted(_text(_Reader(self.whose).value(part, where)) for part in value)
        return [type(value).__name__, parts]

    def _slice(self, value: slice, where: str) -> Any:
        return ["slice", [self.value(v, where) for v in (value.start, value.stop, value.step)]]

    def _contained(self, value: Any, where: str, read: Callable[[], Any]) -> Any:
        """Read a container, or return a number if it is already being read."""
        for depth, other in enumerate(self.inside):
            if other is value:
                return ["inside", depth]
        self.inside.append(value)
        found = [type(value).__qualname__, read()]
        self.inside.pop()
        return found

    # ---------------------------------------------------------------------------------- functions

    def _known(self, value: Any) -> Any:
        for number, other in enumerate(self.met):
            if other is value:
                return ["met", number]
        self.met.append(value)
        return None

    def _function(self, function: types.FunctionType, where: str) -> Any:
        if known := self._known(function):
            return known
        outside, self.names = self.names, frozenset(_all_names(function.__code__))
        read = ["function", self._code_or_name(function, where)]
        for name, value in (
            ("defaults", function.__defaults__),
            ("keyword defaults", function.__kwdefaults__),
        ):
            read.append(self.value(value, _path(where, name)))
        cells = zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
        read.append([[name, self._cell(cell, _path(where, name))] for name, cell in cells])
        given = {n: v for n, v in vars(function).items() if n != "__wrapped__"}
        read.append(self._members(given, where))
        self.names = outside
        return read

    def _code_or_name(self, function: types.FunctionType, where: str) -> Any:
        """Identify a library's wrapper by its name; what it wraps is in its closure."""
        module = function.__globals__.get("__name__", "")
        if _is_library(module):
            return [module, function.__code__.co_name, _version(module)]
        code = function.__code__
        return [self._code(code, where), self._globals(code, function.__globals__, where)]

    def _cell(self, cell: types.CellType, where: str) -> Any:
        try:
            return self.value(cell.cell_contents, where)
        except ValueError as error:
            if isinstance(error, BadInput):
                raise
            return ["empty"]

    def _code(self, code: types.CodeType, where: str) -> Any:
        return [
            "code",
            code.co_code.hex(),
            getattr(code, "co_exceptiontable", b"").hex(),
            [code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount],
            code.co_flags & FLAGS,
            [code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars],
            [self.value(constant, where) for constant in code.co_consts],
        ]

    def _globals(self, code: types.CodeType, known: Mapping[str, Any], where: str) -> Any:
        """Read every global that the code reads, and every module that it imports."""
        read = []
        for name in sorted(set(_names_read(code))):
            if name in known:
                read.append([name, self.value(known[name], _path(where, name))])
            elif hasattr(builtins, name):
                read.append([name, self.value(getattr(builtins, name), _path(where, name))])
        for name in sorted(set(_imports(code))):
            try:
                read.append(self.value(importlib.import_module(name), _path(where, name)))
            except ImportError:  # the rule will raise it itself
                read.append(["no module", name])
        return read

    def _method(self, method: types.MethodType, where: str) -> Any:
        owner = self.value(method.__self__, _path(where, "__self__"))
        return ["method", self.value(method.__func__, where), owner]

    def _builtin(self, function: types.BuiltinFunctionType, where: str) -> Any:
        owner = function.__self__
        plain = owner is None or isinstance(owner, types.ModuleType | type)
        module = getattr(owner, "__name__", "") if plain else self.value(owner, where)
        return ["built in", module, function.__qualname__]

    def _partial(self, partial: functools.partial, where: str) -> Any:
        given = {f"argument {n}": v for n, v in enumerate(partial.args)} | partial.keywords
        return ["partial", self.value(partial.func, where), self._members(given, where)]

    def _ufunc(self, function: numpy.ufunc, where: str) -> Any:
        if getattr(numpy, function.__name__, None) is not function:
            raise self.refuse(function, where)
        return ["ufunc", function.__name__, numpy.__version__]

    def _module(self, module: types.ModuleType, where: str) -> Any:
        name = module.__name__
        if _is_library(name):
            return ["module", name, _version(name)]
        if known := self._known(module):
            return [*known, name, self._read_of(module, where)]
        return ["module", name, self._read_of(module, where)]

    def _read_of(self, module: types.ModuleType, where: str) -> Any:
        """Read, of a user's module, what the code that is being read can name."""
        here = {n: v for n, v in vars(module).items() if n in self.names}
        return self._contained(module, where, lambda: self._members(here, where))

    # ------------------------------------------------------------------------- classes and objects

    def _class(self, kind: type, where: str) -> Any:
        if _is_library(kind.__module__):
            return ["class", kind.__module__, kind.__qualname__, _version(kind.__module__)]
        if known := self._known(kind):
            return known
        if issubclass(kind, Enum):
            members = {name: member.value for name, member in kind.__members__.items()}
            members |= {n: v for n, v in vars(kind).items() if isinstance(v, types.FunctionType)}
        else:
            members = {n: v for n, v in vars(kind).items() if _is_of_the_user(kind, n, v)}
        bases = [self.value(base, _path(where, base.__name__)) for base in kind.__bases__]
        return ["class", kind.__qualname__, bases, self._members(members, where)]

    def _descriptor(self, member: Any, where: str) -> Any:
        inner = [getattr(member, n, None) for n in ("__func__", "func", "fget", "fset", "fdel")]
        return [type(member).__name__, [self.value(part, where) for part in inner]]

    def _made_in_c(self, member: Any, where: str) -> Any:
        owner = getattr(member, "__objclass__", type(member))
        return [type(member).__name__, owner.__qualname__, getattr(member, "__name__", "")]

    def _cached(self, function: Any, where: str) -> Any:
        return ["cached", self.value(function.__wrapped__, where)]

    def _object(self, value: Any, where: str) -> Any:
        """Read an object whose whole state Python shows: its class and its attributes."""
        kind = type(value)
        library = _is_library(kind.__module__)
        told = callable(value) or dataclasses.is_dataclass(kind) or not library
        if not told or not all(map(_is_written_in_python, kind.__mro__)):
            raise self.refuse(value, where)
        return self._contained(
            value, where, lambda: [self.value(kind, where), self._members(_state(value), where)]
        )

    def _members(self, members: Mapping[str, Any], where: str) -> Any:
        return [[name, self.value(members[name], _path(where, name))] for name in sorted(members)]


READERS: tuple[tuple[Any, Callable[[_Reader, Any, str], Any]], ...] = (
    (Enum, _Reader._enum),
    (torch.Tensor, _Reader._tensor),
    ((numpy.ndarray, numpy.generic), _Reader._array),
    ((torch.dtype, torch.device, range), _Reader._written),
    ((tuple, list), _Reader._sequence),
    (dict, _Reader._dict),
    ((set, frozenset), _Reader._set),
    (slice, _Reader._slice),
    (types.CodeType, _Reader._code),
    (types.ModuleType, _Reader._module),
    (types.FunctionType, _Reader._function),
    (types.MethodType, _Reader._method),
    (types.BuiltinFunctionType, _Reader._builtin),
    (functools.partial, _Reader._partial),
    (numpy.ufunc, _Reader._ufunc),
    (type, _Reader._class),
    ((staticmethod, classmethod, property, functools.cached_property), _Reader._descriptor),
    (MADE_IN_C, _Reader._made_in_c),
    (type(functools.lru_cache(len)), _Reader._cached),
)


def _text(read: Any) -> str:
    return json.dumps(read, separators=(",", ":"))


def _path(where: str, name: str) -> str:
    return f"{where}.{name}" if where else name


# ----------------------------------------------------------------------------------------- code


def _codes(code: types.CodeType) -> Iterator[types.CodeType]:
    """Yield a code object and all code that is defined in it."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _codes(constant)


def _all_names(code: types.CodeType) -> Iterator[str]:
    for part in _codes(code):
        yield from part.co_names


def _names_read(code: types.CodeType) -> Iterator[str]:
    for part in _codes(code):
        for step in dis.get_instructions(part):
            if step.opname in READS_GLOBAL:
                yield step.argval


def _imports(code: types.CodeType) -> Iterator[str]:
    for part in _codes(code):
        for step in dis.get_instructions(part):
            if step.opname == "IMPORT_NAME":
                yield step.argval


# ------------------------------------------------------------------------------------- libraries


def _is_library(module: str) -> bool:
    """Whether a module is installed or Python's own, and so identified by name and version."""
    top = module.partition(".")[0]
    if top == PACKAGE:
        return not module.startswith(QUOTED)
    return top in sys.stdlib_module_names or _is_installed(top)


def _is_installed(top: str) -> bool:
    module = sys.modules.get(top)
    places = [*getattr(module, "__path__", ()), getattr(module, "__file__", None)]
    return bool(places[0]) and _holds_installed(Path(places[0]).parent)


@functools.cache
def _holds_installed(folder: Path) -> bool:
    """Whether a folder has the metadata that every installer leaves beside a package."""
    return any(folder.glob("*.dist-info"))


def _version(module: str) -> str | None:
    found = getattr(sys.modules.get(module.partition(".")[0]), "__version__", None)
    return found if isinstance(found, str) else None


def _name_in_library(value: Any) -> list[Any] | None:
    """Return where a library holds this very value under its own name; None if it does not."""
    try:
        module, name = value.__module__, getattr(value, "__qualname__", None) or value.__name__
    except Exception:  # objects may raise anything
        return None
    if not isinstance(module, str) or not isinstance(name, str) or not _is_library(module):
        return None
    found: Any = sys.modules.get(module)
    for part in name.split("."):
        found = getattr(found, part, None)
    return ["library", module, name, _version(module)] if found is value else None


# --------------------------------------------------------------------------------------- objects


def _state(value: Any) -> dict[str, Any]:
    """Return the attributes of an object, from its dictionary and its slots."""
    slots = [vars(kind).get("__slots__", ()) for kind in type(value).__mro__]
    names = [n for some in slots for n in ((some,) if isinstance(some, str) else some)]
    state = {n: getattr(value, n) for n in names if not n.startswith("__") and hasattr(value, n)}
    return state | getattr(value, "__dict__", {})


def _is_of_the_user(kind: type, name: str, member: Any) -> bool:
    """Whether a member of a class was written by the user, not by Python or by `dataclass`."""
    if not name.startswith("__"):
        return not name.startswith("_abc_")
    if not isinstance(member, types.FunctionType | staticmethod | classmethod | property):
        return False
    made = getattr(inspect.unwrap(getattr(member, "__func__", member)), "__code__", None)
    generated = dataclasses.is_dataclass(kind) and made is not None
    return not (generated and made.co_filename == "<string>")


def _is_written_in_python(kind: type) -> bool:
    """Whether instances keep no state that Python does not show."""
    if kind is object or kind.__module__ in ("typing", "abc"):
        return True
    if not _is_library(kind.__module__):
        return True
    members = (getattr(member, "__func__", member) for member in vars(kind).values())
    return any(isinstance(member, types.FunctionType) for member in members)
