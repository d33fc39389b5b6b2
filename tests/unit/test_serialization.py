"""Values to bytes and back, exceptions as data, and what a reader refuses."""

from __future__ import annotations

import asyncio
import copy
import json
import math
import pickle
import sys
from collections import OrderedDict
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import IntEnum
from typing import NamedTuple
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from localq import exceptions
from localq.exceptions import ContentDisallowed, DecodeError, EncodeError, PayloadCorrupt, SecurityError
from localq.serialization import (
    TEXT_LIMIT,
    Codec,
    checksum,
    codecs,
    decode,
    encode,
    exception_data,
    exception_from,
    register,
    register_type,
    safe_repr,
    traceback_text,
)

ACCEPT = ("json",)
zones = st.none() | st.integers(-14 * 60 + 1, 14 * 60 - 1).map(lambda m: timezone(timedelta(minutes=m)))
words = st.text(max_size=8) | st.sampled_from(["__type__", "__value__", '"__type__"', "\udcff", "\0"])
scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | words
    | st.datetimes(timezones=zones)
    | st.dates()
    | st.times(timezones=zones)
    | st.timedeltas()
    | st.decimals()
    | st.uuids()
    | st.binary(max_size=20)
)
plain_hashable = st.none() | st.booleans() | st.integers() | words | st.dates() | st.uuids() | st.binary(max_size=5)
hashable = st.recursive(
    plain_hashable, lambda each: st.tuples(each, each) | st.frozensets(each, max_size=3), max_leaves=6
)
keys = words | st.integers() | st.booleans() | st.none()
values = st.recursive(
    scalars | st.sets(hashable, max_size=4) | st.frozensets(hashable, max_size=4),
    lambda each: (
        st.lists(each, max_size=4)
        | st.lists(each, max_size=4).map(tuple)
        | st.dictionaries(words, each, max_size=4)
        | st.dictionaries(st.sampled_from(["__type__", "a"]), each, min_size=1)
        | st.dictionaries(keys, each, max_size=3)
    ),
    max_leaves=20,
)


def same(one, other):
    """Equal, of the same type, with NaN equal to itself."""
    if type(one) is not type(other):
        return False
    if isinstance(one, float) and math.isnan(one):
        return math.isnan(other)
    if isinstance(one, Decimal):
        return str(one) == str(other)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    return one == other


def as_json_keeps_it(value, in_set=False):
    """What comes back: tuples become lists (in a set they must stay hashable), keys become text."""
    if isinstance(value, list | tuple) and not in_set:
        return [as_json_keeps_it(item) for item in value]
    if isinstance(value, dict):
        return {text_key(key): as_json_keeps_it(item) for key, item in value.items()}
    return value


def text_key(key):
    return key if isinstance(key, str) else next(iter(json.loads(json.dumps({key: 0}))))


def back(value, serializer="json"):
    data, content_type = encode(value, serializer)
    return decode(data, content_type, ACCEPT, checksum(data))


@settings(max_examples=400)
@given(values)
def test_every_supported_value_comes_back_as_its_own_type(value):
    assert same(back(value), as_json_keeps_it(value))


marked = st.recursive(
    st.integers() | st.sampled_from(["x", "set", "dict", "bytes", "datetime"]),
    lambda each: st.dictionaries(st.sampled_from(["__type__", "__value__", "k"]), each, max_size=3),
    max_leaves=8,
)


@given(marked)
def test_a_dict_of_the_users_is_never_taken_for_one_of_our_marks(value):
    assert same(back(value), value)


@given(values)
def test_what_came_back_comes_back_again(value):
    once = back(value)
    assert same(back(once), once)


@pytest.mark.parametrize("value", [
    datetime(2026, 1, 2, 3, 4, 5, 6), date(2026, 1, 2), time(1, 2, 3), timedelta(-1, 5, 6), Decimal("1.10"),
    UUID(int=7), b"\xff\0", {1, 2}, frozenset({"a"}), 10**300, True, None, 1.5, "\u2028",
], ids=lambda value: type(value).__name__)  # fmt: skip
def test_each_type_comes_back(value):
    assert same(back(value), value)


def test_a_tuple_becomes_a_list_and_a_key_becomes_text():
    assert back({1: (1, (2, 3)), None: 4, False: 5}) == {"1": [1, [2, 3]], "null": 4, "false": 5}


def test_keys_become_text_in_a_dict_that_looks_like_a_mark_too():
    assert back({1: 2, "__type__": 3}) == {"1": 2, "__type__": 3}


def test_a_tuple_in_a_set_stays_a_tuple():
    assert back({(1, (2, 3)), (4,)}) == {(1, (2, 3)), (4,)}
    assert back(frozenset({frozenset({1}), (2,)})) == frozenset({frozenset({1}), (2,)})


def test_subclasses_are_written_as_what_they_are():
    class Colour(IntEnum):
        RED = 1

    class Words(set):
        pass

    point = NamedTuple("point", [("x", int), ("y", int)])
    assert back([Colour.RED, point(1, 2), OrderedDict(a=1), bytearray(b"x")]) == [1, [1, 2], {"a": 1}, b"x"]
    assert back(Words({1})) == {1}
    assert back({"__type__": 1, "inner": Words({1})}) == {"__type__": 1, "inner": {1}}


def test_nan_and_infinity_round_trip_unless_they_are_refused():
    assert same(back([float("nan"), float("inf"), float("-inf")]), [float("nan"), float("inf"), float("-inf")])
    with pytest.raises(EncodeError, match="json-strict"):
        encode([float("nan")], "json-strict")
    assert back([1.5], "json-strict") == [1.5]


def test_an_object_may_say_how_it_is_written():
    class Money:
        def __json__(self):
            return {"amount": Decimal(3)}

    assert back([Money()]) == [{"amount": Decimal(3)}]


def test_what_an_object_says_is_never_taken_for_one_of_our_marks():
    class Odd:
        def __json__(self):
            return {"__type__": "bytes", "other": [1]}

    assert back({"odd": Odd()}) == {"odd": {"__type__": "bytes", "other": [1]}}


def test_a_type_of_the_users_comes_back_once_it_is_registered():
    class Money:
        def __init__(self, cents):
            self.cents = cents

    register_type(Money, "test.money", lambda v: v.cents, Money)
    assert back({"price": Money(5)})["price"].cents == 5


def test_an_unregistered_type_mark_is_an_error_that_names_it():
    with pytest.raises(DecodeError, match=r"unknown JSON type 'nobody\.knows'"):
        decode(b'{"__type__":"nobody.knows","__value__":1}', "application/json", ACCEPT)


@pytest.mark.parametrize("data", [
    b"", b"{", b"\xff", b'{"__type__":1}', b'{"__type__":"set"}', b'{"__type__":"set","__value__":3}',
    b'{"__type__":"bytes","__value__":"*"}', b'{"__type__":"datetime","__value__":"yesterday"}',
    b'{"__type__":"dict","__value__":[[[],1]]}', b"[" * 100_000, b"1" * 5000,
], ids=lambda data: repr(data[:24]))  # fmt: skip
def test_unreadable_bytes_are_a_decode_error_and_nothing_else(data):
    with pytest.raises(DecodeError):
        decode(data, "application/json", ACCEPT)


@given(st.binary(max_size=60))
def test_no_bytes_make_the_reader_raise_anything_else(data):
    try:
        decode(data, "application/json", ACCEPT)
    except DecodeError:
        pass


def test_what_cannot_be_written_is_named_with_its_type_and_a_way_out():
    with pytest.raises(EncodeError, match=r"value\['users'\]\[1\] of type object .*register_type"):
        encode({"users": [1, object()]}, "json")


@pytest.mark.parametrize("value", [{(1, 2): 3}, {b"k": 1}, 10**5000, memoryview(b"")], ids=lambda v: type(v).__name__)
def test_what_json_has_no_words_for_is_refused_at_the_call(value):
    with pytest.raises(EncodeError):
        encode([value], "json")


def test_a_value_that_contains_itself_is_refused():
    loop: list[object] = []
    loop.append(loop)
    with pytest.raises(EncodeError):
        encode(loop, "json")


def test_a_value_nested_too_deeply_is_refused():
    deep: list[object] = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(EncodeError):
        encode(deep, "json")


def test_a_codec_may_raise_anything_and_it_becomes_one_of_our_errors():
    def fail(_):
        raise KeyError("codec bug")

    register(Codec("test-broken", "application/x-test-broken", fail, fail))
    with pytest.raises(EncodeError, match="codec bug"):
        encode(1, "test-broken")
    with pytest.raises(DecodeError, match="codec bug"):
        decode(b"", "application/x-test-broken", ("test-broken",))


def test_a_content_type_that_is_not_accepted_is_refused_before_a_byte_is_read():
    def explode(_):
        raise AssertionError("the payload was looked at")

    register(Codec("test-trap", "application/x-test-trap", explode, explode))
    with pytest.raises(ContentDisallowed, match="application/x-test-trap"):
        decode(b"boom", "application/x-test-trap", ACCEPT)


def test_a_content_type_may_be_accepted_by_name_or_by_itself():
    assert decode(b"1", "application/json", ("json",)) == decode(b"1", "application/json", ("application/json",)) == 1


def test_an_unknown_content_type_is_never_guessed():
    with pytest.raises(DecodeError, match="no serializer"):
        decode(b"1", "application/x-nobody", ("application/x-nobody",))


@given(st.binary(min_size=1, max_size=40), st.data())
def test_one_changed_byte_is_noticed(data, draw):
    total = checksum(data)
    at = draw.draw(st.integers(0, len(data) - 1))
    changed = bytearray(data)
    changed[at] ^= draw.draw(st.integers(1, 255))
    with pytest.raises(PayloadCorrupt):
        decode(bytes(changed), "application/json", ACCEPT, total)


def test_an_unknown_serializer_is_named_with_the_nearest():
    with pytest.raises(exceptions.SerializerNotInstalled, match="did you mean 'json'"):
        codecs.get("jsn")


# -- Exceptions as data --------------------------------------------------------------------------


class Custom(Exception):
    """An exception of a module that both sides have."""


class Demanding(Exception):
    """Its __init__ wants other arguments than it passes on."""

    def __init__(self, code, *, reason):
        super().__init__(f"{code}: {reason}")


args_of = st.lists(scalars.filter(lambda v: not isinstance(v, Decimal | float)), max_size=3)


@given(args_of)
def test_an_exception_comes_back_with_its_class_and_arguments(args):
    found = exception_from(back(exception_data(Custom(*args))))
    assert type(found) is Custom
    assert found.args == tuple(args)


@given(st.sampled_from([
    kind for kind in vars(exceptions).values() if isinstance(kind, type) and issubclass(kind, exceptions.LocalqError)
]))  # fmt: skip
def test_every_error_of_localq_comes_back_as_itself(kind):
    found = exception_from(back(exception_data(kind("why"))))
    assert type(found) is kind
    assert "why" in str(found)


def test_an_argument_that_cannot_be_written_is_kept_as_its_repr():
    found = exception_from(back(exception_data(ValueError("bad", object, 3))))
    assert found.args == ("bad", repr(object), 3)


def test_an_exception_whose_init_cannot_be_called_again_keeps_class_and_message():
    found = exception_from(back(exception_data(Demanding(5, reason="full"))))
    assert type(found) is Demanding
    assert str(found) == "5: full"


def test_an_unknown_class_is_made_up_so_that_name_and_message_survive():
    found = exception_from({"exc_type": "Gone", "exc_module": "no.such.module", "exc_message": ["was here"]})
    assert type(found).__name__ == "Gone"
    assert type(found).__module__ == "no.such.module"
    assert str(found) == "was here"


def test_a_class_of_a_function_is_made_up_too():
    class Local(Exception):
        pass

    found = exception_from(back(exception_data(Local("x"))))
    assert (type(found).__name__, found.args) == ("Local", ("x",))


@pytest.mark.parametrize(
    ("module", "name"), [("os", "system"), ("builtins", "eval"), ("builtins", "int"), ("os", "path")]
)
def test_a_result_that_names_something_else_than_an_exception_is_refused(module, name):
    with pytest.raises(SecurityError, match=name):
        exception_from({"exc_type": name, "exc_module": module, "exc_message": ["echo pwned"]})


def test_no_module_is_imported_because_a_result_names_it():
    assert "this" not in sys.modules
    exception_from({"exc_type": "X", "exc_module": "this", "exc_message": []})
    assert "this" not in sys.modules


def test_notes_of_an_exception_survive():
    exc = ValueError("x")
    exc.add_note("seen at the third row")
    assert exception_from(back(exception_data(exc))).__notes__ == ["seen at the third row"]


class Coded(Exception):
    """It passes nothing on, and its words are made of what it has."""

    def __init__(self, *, code):
        self.code = code

    def __str__(self):
        return f"code is {self.code}"


class Shouting(Exception):
    """Its words are made of an argument that it does not pass on."""

    def __init__(self, response, message=None):
        super().__init__(message)
        self.response = response

    def __str__(self):
        return self.response.upper()


class Wrapping(Exception):
    """It makes something else of its argument, and passes that on."""

    def __init__(self, code):
        super().__init__(f"status {code}")


class Unshowable(Exception):
    """Nobody can say what it is."""

    def __str__(self):
        raise RuntimeError("no words")

    __repr__ = __str__


class Childless(ValueError):
    """No class may stand below it."""

    def __init_subclass__(cls):
        raise TypeError("this class is final")

    def __new__(cls, *args):
        if not args:
            raise TypeError("it wants an argument")
        return super().__new__(cls)

    def __init__(self, what):
        super().__init__()
        self.what = what

    def __str__(self):
        return self.what


def file_is_missing():
    try:
        open("/no/such/file")
    except FileNotFoundError as exc:
        return exc
    raise AssertionError


@pytest.mark.row("R24")
@pytest.mark.parametrize(
    "exc",
    [Coded(code=7), Shouting("hello"), Wrapping(404), KeyError("k"), KeyError(object), ValueError("a", 1), Exception(),
     file_is_missing(), ExceptionGroup("two", [ValueError("a")]), Childless("final"), OSError(2, "gone")],
    ids=repr,
)  # fmt: skip
def test_what_an_exception_says_survives_and_it_can_be_caught_as_before(exc):
    found = exception_from(back(exception_data(exc)))
    assert str(found) == str(exc)
    assert (type(found).__name__, type(found).__module__) == (type(exc).__name__, type(exc).__module__)
    caught_by = {Childless: ValueError, ExceptionGroup: Exception}.get(type(exc), type(exc))
    assert isinstance(found, caught_by)
    assert type(exc).__name__ in repr(found)
    again = exception_from(back(exception_data(found)))  # raised once more, by a task that waited for it
    assert (str(again), isinstance(again, caught_by)) == (str(exc), True)


@pytest.mark.parametrize("exc", [ValueError("x"), Wrapping(404), KeyError("k"), Custom("a", 1)], ids=repr)
def test_an_exception_that_says_the_same_is_of_its_own_class(exc):
    assert type(exception_from(back(exception_data(exc)))) is type(exc)


def test_what_an_exception_says_is_kept_only_if_its_arguments_do_not_say_it():
    assert "exc_text" not in exception_data(ValueError("x" * 100_000))
    assert "exc_text" not in exception_data(ValueError("bad", 3))
    assert exception_data(Coded(code=7))["exc_text"] == "code is 7"
    assert len(exception_data(Coded(code="x" * 100_000))["exc_text"]) == TEXT_LIMIT


def test_an_exception_that_nobody_can_show_comes_back_as_one_that_can_be_shown():
    found = exception_from(back(exception_data(Unshowable("x"))))
    assert (isinstance(found, Unshowable), str(found), repr(found)) == (True, "x", "Unshowable('x')")


def test_an_exception_with_its_text_can_be_pickled_and_copied():
    found = exception_from(back(exception_data(Coded(code=7))))
    for again in (pickle.loads(pickle.dumps(found)), copy.copy(found)):
        assert (str(again), isinstance(again, Coded)) == ("code is 7", True)


@pytest.mark.row("R24")
@pytest.mark.parametrize(
    "kind", [SystemExit, KeyboardInterrupt, GeneratorExit, asyncio.CancelledError, exceptions.WorkerShutdown]
)
def test_what_would_end_or_cancel_the_caller_comes_back_as_an_exception_of_that_name(kind):
    data = back(exception_data(kind("why")))
    found = exception_from(data)
    assert isinstance(found, Exception)
    assert not isinstance(found, kind)
    assert (type(found).__name__, str(found), found.args) == (kind.__name__, "why", ("why",))
    assert type(exception_from(data, is_here=True)) is kind


@pytest.mark.row("R24")
@pytest.mark.parametrize("text", [7, None, ["x"], {"a": 1}, "x" * 200_000])
def test_a_text_that_nobody_wrote_does_no_harm(text):
    data = {"exc_type": "ValueError", "exc_module": "builtins", "exc_message": ["x"], "exc_text": text}
    assert isinstance(exception_from(data), ValueError)
    assert str(exception_from(data)) == (text if isinstance(text, str) else "x")
    with pytest.raises(SecurityError, match="system"):
        exception_from({**data, "exc_type": "system", "exc_module": "os"})


def test_celerys_form_of_a_single_message_is_understood():
    assert exception_from({"exc_type": "ValueError", "exc_module": "builtins", "exc_message": "x"}).args == ("x",)


def test_a_repr_that_fails_or_never_ends_is_cut_short():
    class Broken:
        def __repr__(self):
            raise RuntimeError("no repr")

    assert safe_repr(Broken()) == "<unrepresentable Broken: RuntimeError>"
    assert len(safe_repr("x" * 10**6, 100)) == 100


def test_a_traceback_of_any_length_is_kept_at_both_ends():
    try:
        raise ValueError("begin" + "x" * 10**6 + "end")
    except ValueError as exc:
        text = traceback_text(exc)
    assert len(text) < 70_000
    assert text.startswith("Traceback")
    assert text.rstrip().endswith("end")
