"""The fingerprint of a rule: another for whatever can change a token, the same for what cannot."""

import dataclasses
import functools
import inspect
import itertools
import math
import os
import subprocess
import sys
import textwrap
import threading
import types
from enum import Enum

import numpy
import pytest
import torch

from decoding import PAIRS
from logit_amplification.engine.reference import sample_amplified
from logit_amplification.errors import BadInput
from logit_amplification.locations import ROOT
from logit_amplification.logits.amplification import amplify
from logit_amplification.logits.sampling import uniforms
from logit_amplification.sweeps.fingerprint import display_name, fingerprint
from logit_amplification.sweeps.sweep import sweep


def cell(source, file="<cell>", **known):
    """What the cells of a notebook leave behind: the names they define."""
    names = {"__name__": "__main__", "torch": torch, **known}
    exec(compile(textwrap.dedent(source), file, "exec"), names)
    return types.SimpleNamespace(**names)


def of(source, *later, **known):
    """The fingerprint of `rule`, as the cells define it one after the other."""
    names = {}
    for part in (source, *later):
        names = vars(cell(part, **{**known, **names}))
    return fingerprint(names["rule"])


RULE = "def rule(a, b, alpha):\n    return a + STRENGTH * alpha * (a - b)\n"


def test_the_built_in_rule_is_the_same_from_a_cell_as_from_the_library():
    quoted = cell(inspect.getsource(amplify), file="<ipython-input-3>")
    assert fingerprint(quoted.amplify) == fingerprint(amplify)


def test_the_loop_is_the_same_from_a_cell_as_from_the_library():
    from logit_amplification.engine.forward import next_logits
    from logit_amplification.engine.reference import Step

    source = inspect.getsource(amplify) + "\n\n" + inspect.getsource(sample_amplified)
    quoted = cell(source, Step=Step, next_logits=next_logits)
    assert fingerprint(quoted.sample_amplified) == fingerprint(sample_amplified)
    edited = cell(source.replace("ids_a = ids_b", "ids_b"), Step=Step, next_logits=next_logits)
    assert fingerprint(edited.sample_amplified) != fingerprint(sample_amplified)


def test_where_it_stands_and_comments_do_not_count():
    moved = "\n\n\n# a comment\n" + RULE.replace("\n    return", "\n    # why\n    return")
    assert of("STRENGTH = 2\n" + RULE) == of(moved, STRENGTH=2)


def test_other_code_counts_in_what_is_nested_too():
    inner = "def rule(a, b, alpha):\n    return (lambda x: x * {})(a)\n"
    assert of(inner.format(2)) != of(inner.format(3))
    assert of("rule = lambda a, b, alpha: a") != of("rule = lambda a, b, alpha: b")
    assert of(inner.format("0")) != of(inner.format("0.0")) != of(inner.format("-0.0"))


class Mode(Enum):
    FAST = 1
    SLOW = 2


@dataclasses.dataclass
class Knobs:
    strength: float = 1.0
    more: dict = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, slots=True)
class Slotted:
    strength: float = 1.0


VALUES = [
    *(None, False, 0, 0.0, -0.0, 0j, "", b"", 1, True, 1.0, "1", b"1", 1j, 10**5000, float("nan")),
    *((), [], {}, set(), frozenset(), (1,), [1], {1}, {1: 2}, {1: 3}, {1: {2: 3}}, {"b", "a"}),
    *(range(3), range(4), slice(1), slice(2), Mode.FAST, Mode.SLOW),
    *(Knobs(), Knobs(2.0), Knobs(more={"x": 1}), Slotted(), Slotted(2.0)),
    *(torch.tensor(1.0), torch.tensor([1.0]), torch.tensor([2.0]), torch.tensor([1.0]).double()),
    *(torch.tensor([1.0]).bfloat16(), torch.tensor([[1.0]]), torch.tensor([True])),
    *(torch.tensor([1j]), torch.empty(0), torch.float32, torch.float16, torch.device("cpu")),
    *(numpy.array([1.0]), numpy.array([2.0]), numpy.array([1]), numpy.array([[1.0]])),
    *(numpy.float64(1.0), numpy.float32(1.0), numpy.exp, numpy.sin, numpy.sum, torch.softmax),
    *(torch.nn.functional.relu, torch.no_grad, len, max, dict, dict.get, torch.Tensor.add),
    *(functools.partial(max, 1), functools.partial(max, 2), functools.partial(max, key=len)),
    *(torch.nn.ReLU(), torch.nn.Softplus(beta=2.0), torch.nn.Softplus(beta=3.0)),
    *([[1], 2], [1, [2]], ["1", "2"], ["1, 2"], uniforms, math, os),
]


@pytest.mark.parametrize("kind", ["global", "closure", "default", "keyword", "partial", "method"])
def test_every_value_that_it_reads_counts_wherever_it_comes_from(kind):
    read = {
        "global": RULE,
        "closure": f"def outer(STRENGTH):\n{textwrap.indent(RULE, '    ')}    return rule\n"
        "rule = outer(VALUE)",
        "default": "def rule(a, b, alpha, s=VALUE): return s",
        "keyword": "def rule(a, b, alpha, *, s=VALUE): return s",
        "partial": "import functools\ndef f(s, a, b, alpha): return s\n"
        "rule = functools.partial(f, VALUE)",
        "method": "class R:\n    def __init__(self, v): self.v = v\n"
        "    def rule(self, a, b, alpha): return self.v\nrule = R(VALUE).rule",
    }[kind]
    found = [of(read, VALUE=value, STRENGTH=value) for value in VALUES]
    assert len(set(found)) == len(VALUES)
    assert found == [of(read, VALUE=value, STRENGTH=value) for value in VALUES]


def test_equal_values_are_the_same_value():
    for one, other in [
        ({"a", "b", "c"}, {"c", "b", "a"}),
        (torch.arange(6).reshape(2, 3).T, torch.arange(6).reshape(2, 3).T.contiguous()),
        (torch.tensor([1.0]), torch.nn.Parameter(torch.tensor([1.0]))),
        ([same := [1], same], [[1], [1]]),
    ]:
        assert of(RULE, STRENGTH=one) == of(RULE, STRENGTH=other)


HELPED = "def helper(x): return x * SCALE\ndef rule(a, b, alpha): return helper(a)\n"


def test_what_its_own_functions_read_counts():
    assert of("SCALE = 1", HELPED) != of("SCALE = 2", HELPED)
    assert of("SCALE = 1", HELPED) == of("SCALE = 1\nOTHER = 5", HELPED)
    assert of("SCALE = 1", HELPED) != of("SCALE = 1", HELPED.replace("x *", "x +"))


def test_what_is_read_in_a_loop_of_the_cells_functions_ends():
    source = "def f(n): return rule(n, n, S) if n else S\ndef rule(a, b, alpha): return f(a)\n"
    assert of(source, S=1) != of(source, S=2)
    assert of(source, S=1) == of(source, S=1)
    knot = [1]
    knot.append(knot)
    other = [2]
    other.append(other)
    assert of(RULE, STRENGTH=knot) != of(RULE, STRENGTH=other)


def test_a_decorated_rule_is_its_wrapper_and_what_it_wraps():
    source = """
        import functools
        def times(n):
            def decorate(f):
                @functools.wraps(f)
                def wrapper(*args): return {outer} * n * f(*args)
                return wrapper
            return decorate
        @times({n})
        def rule(a, b, alpha): return a + {inner}
    """
    asked = itertools.product((1, 2), (3, 4), (5, 6))
    found = {of(source.format(outer=o, n=n, inner=i)) for o, n, i in asked}
    assert len(found) == 8
    wrapped = "@{}\ndef rule(a, b, alpha): return a + {}"
    ways = ("torch.no_grad()", "torch.inference_mode()", "torch.inference_mode(False)")
    assert len({of(wrapped.format(way, n)) for way in ways for n in (1, 2)}) == 6
    cached = "import functools\n@functools.cache\ndef rule(a, b, alpha): return {}"
    assert of(cached.format(1)) != of(cached.format(2))


def test_a_callable_object_is_its_class_and_its_attributes():
    source = """
        class Base:
            scale = {base}
            @property
            def twice(self): return {twice}
        class Rule(Base):
            @staticmethod
            def more(): return {more}
            def __init__(self, strength): self.strength = strength
            def __call__(self, a, b, alpha): return super().scale * self.strength + self.twice
        rule = Rule({strength})
    """
    values = {"base": 1, "twice": 1, "more": 1, "strength": 1}
    found = {of(source.format(**values))}
    for name in values:
        found.add(of(source.format(**values | {name: 2})))
    assert len(found) == 5
    assert of(source.format(**values)) in found


def test_named_tuples_enums_and_dataclasses_of_a_cell_count():
    source = """
        from dataclasses import dataclass
        from enum import Enum
        from typing import NamedTuple
        class Point(NamedTuple):
            x: int = {point}
        class Kind(Enum):
            ONE = {kind}
        @dataclass
        class Knobs:
            y: int = {knobs}
        def rule(a, b, alpha): return Point().x, Kind.ONE, Knobs()
    """
    values = {"point": 1, "kind": 1, "knobs": 1}
    found = {of(source.format(**values))}
    for name in values:
        found.add(of(source.format(**values | {name: 2})))
    assert len(found) == 4 and of(source.format(**values)) in found


def test_a_module_of_ones_own_counts_by_what_is_read_of_it(tmp_path, monkeypatch):
    (tmp_path / "my_rules_7.py").write_text("STRENGTH = 1\nOTHER = 1\ndef f(x): return STRENGTH\n")
    monkeypatch.syspath_prepend(tmp_path)
    for source in (
        "import my_rules_7\ndef rule(a, b, alpha): return my_rules_7.f(a)",
        "from my_rules_7 import f\ndef rule(a, b, alpha): return f(a)",
        "def rule(a, b, alpha):\n    from my_rules_7 import f\n    return f(a)",
    ):
        before = of(source)
        monkeypatch.setattr(sys.modules["my_rules_7"], "OTHER", 2)
        assert of(source) == before
        monkeypatch.setattr(sys.modules["my_rules_7"], "STRENGTH", 2)
        assert of(source) != before
        monkeypatch.undo()
        monkeypatch.syspath_prepend(tmp_path)


PROGRAM = """
import enum, functools, sys
import torch
from logit_amplification.logits.amplification import amplify
from logit_amplification.logits.arms import ARMS
from logit_amplification.engine.reference import sample_amplified
from logit_amplification.sweeps.fingerprint import fingerprint
class Mode(enum.Enum):
    FAST = "fast"
NAMES = {"one", "two", "three", "four", frozenset({"five", "six"}), Mode.FAST}
TABLE = {"x": torch.tensor([1.0, 2.0]), "names": NAMES}
class Rule:
    def __init__(self): self.names = NAMES
    def __call__(self, a, b, alpha): return a if a in {"p", "q", "r"} else TABLE
@torch.no_grad()
def rule(a, b, alpha): return ARMS["full"](Rule(), a, b, len(NAMES))
for f in (amplify, sample_amplified, rule, Rule(), functools.partial(rule, alpha=TABLE)):
    print(fingerprint(f))
"""


def test_another_process_finds_the_same():
    told = []
    for seed in ("1", "2"):
        environment = {
            **os.environ,
            "PYTHONHASHSEED": seed,
            "PYTHONPATH": str(ROOT / "code"),
        }
        command = [sys.executable, "-c", PROGRAM]
        ended = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert ended.returncode == 0, ended.stderr
        told.append(ended.stdout.split())
    assert told[0] == told[1] and len(set(told[0])) == 5
    assert told[0][0] == fingerprint(amplify)


class Opaque(threading.local):
    """State that Python does not show."""


@pytest.mark.parametrize(
    "value",
    [
        open(os.devnull),  # noqa: SIM115
        (n for n in range(3)),
        threading.Lock(),
        object(),
        iter([1]),
        torch.Generator(),
        numpy.random.default_rng(0),
        numpy.random.default_rng(0).normal,
        numpy.frompyfunc(lambda x: x, 1, 1),
        numpy.array([object()]),
        torch.eye(2).to_sparse(),
        torch.empty(2, device="meta"),
        Opaque(),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_has_no_value_to_compare_is_refused_by_name(value):
    told = r"^RULE = 'rule': the variable helper.SCALE\['x'\]\[0\](.__self__)? is of type "
    with pytest.raises(BadInput, match=told + r".*; allowed: None, numbers, text") as refused:
        of(HELPED, SCALE={"x": [value]})
    assert "\n" not in str(refused.value)


def test_a_refused_rule_or_loop_leaves_nothing_behind(tiny, settings, generated):
    rule = cell(RULE, STRENGTH=threading.Lock()).rule
    with pytest.raises(BadInput, match="RULE = 'rule': the variable STRENGTH is of type"):
        sweep(tiny, PAIRS, settings, rule=rule)
    with pytest.raises(BadInput, match="LOOP = 'rule': the variable STRENGTH is of type"):
        sweep(tiny, PAIRS, settings, loop=rule)
    with pytest.raises(BadInput, match="RULE = 7; allowed: a function"):
        sweep(tiny, PAIRS, settings, rule=7)
    assert generated == [] and not settings.data_dir.exists()


def test_too_deep_a_value_is_refused():
    deep = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(BadInput, match="nested too deeply"):
        of(RULE, STRENGTH=deep)


def test_a_rule_without_a_name_has_one_to_show(tiny, settings):
    class Pushed:
        def __call__(self, a, b, alpha):
            return amplify(a, b, 2 * alpha)

    def pushed(a, b, alpha, times):
        return amplify(a, b, times * alpha)

    twice = functools.partial(pushed, times=2.0)
    assert [display_name(f) for f in (twice, Pushed())] == ["pushed", "Pushed"]
    done = [sweep(tiny, PAIRS[:1], settings, rule=rule) for rule in (twice, Pushed())]
    assert [one.run["rule"]["name"] for one in done] == ["pushed", "Pushed"]
    assert done[0].run["id"] != done[1].run["id"]
    assert [r["text"] for r in done[0].records] == [r["text"] for r in done[1].records]
