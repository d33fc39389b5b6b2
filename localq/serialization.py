"""Values to bytes and back: serializers by name, and exceptions as data.

The reader decides what it accepts: a payload's content type is compared with the accepted names
before any of its bytes are looked at. Must never import or call anything that a payload names.
"""

from __future__ import annotations

import base64
import json
import reprlib
import sys
import traceback as traceback_module
import zlib
from collections.abc import Callable, Collection, Mapping
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import Any, NamedTuple
from uuid import UUID

from localq import states
from localq.exceptions import (
    ContentDisallowed,
    DecodeError,
    EncodeError,
    PayloadCorrupt,
    SecurityError,
    SerializerNotInstalled,
    TaskRevokedError,
)
from localq.registry import Registry

checksum: Callable[[bytes], int] = zlib.crc32

#: The longest text kept of a traceback or of a value that could not be written, in characters.
TEXT_LIMIT = 64 * 1024


class Codec(NamedTuple):
    """One way to write values.

    `encode` takes a value and returns bytes, `decode` the reverse; both may raise anything, which
    becomes EncodeError or DecodeError here.
    """

    name: str
    content_type: str
    encode: Callable[[Any], bytes]
    decode: Callable[[bytes], Any]


#: Celery's serializers that are not here yet: name -> content type.
LATER = {"pickle": "application/x-python-serialize", "yaml": "application/x-yaml", "msgpack": "application/x-msgpack"}
codecs: Registry[Codec] = Registry("serializer", "localq.serializers", SerializerNotInstalled, LATER)
_by_content_type: dict[str, Codec] = {}


def register(codec: Codec, *aliases: str) -> None:
    """Make a serializer known by its name, its content type and its aliases."""
    codecs.register(codec.name, codec, *aliases)
    _by_content_type[codec.content_type] = codec


def fault_of_serializer(name: str) -> str:
    """Say why nothing can be written by a serializer of this name; empty if it can."""
    try:
        codecs.get(name)
    except SerializerNotInstalled as exc:
        return str(exc)
    return ""


def fault_of_accepted(names: Collection[Any]) -> str:
    """Say why no reader can accept just these names and content types; empty if one can."""
    known = {*_by_content_type, *codecs.names()}
    later = {*LATER, *LATER.values()}
    for name in names:
        if not isinstance(name, str):
            return f"{name!r} is no name of a serializer: give text"
        if name not in known and name not in later and (fault := fault_of_serializer(name)):
            return fault
    if names and later.issuperset(names):
        return f"nothing could be read: of these, none is built yet in this version of localq; add {JSON.name!r}"
    return ""


def encode(value: Any, serializer: str, where: str = "value") -> tuple[bytes, str]:
    """Write a value.

    Args:
        serializer: the name of a registered serializer.
        where: what the value is, for the error.

    Returns:
        The bytes and their content type.

    Raises:
        EncodeError: names the part that cannot be written, its type, and the way out.
        SerializerNotInstalled: no serializer has this name.
    """
    codec = codecs.get(serializer)
    try:
        return codec.encode(value), codec.content_type
    except Exception as exc:
        raise EncodeError(_blame(value, codec, where, exc)) from exc


def decode(data: bytes, content_type: str, accept: Collection[str], expected: int | None = None) -> Any:
    """Read a value.

    Args:
        accept: names or content types that the reader takes.
        expected: the checksum the bytes were written with; None if none was kept.

    Raises:
        ContentDisallowed: the content type is not accepted; nothing was parsed.
        PayloadCorrupt: the bytes are not those that were written.
        DecodeError: the bytes cannot be read.
    """
    codec = _by_content_type.get(content_type)
    if content_type not in accept and (codec is None or codec.name not in accept):
        raise ContentDisallowed(
            f"content type {content_type!r} is not accepted here; accept_content has {sorted(accept)}"
        )
    if codec is None:
        raise DecodeError(f"no serializer is registered for content type {content_type!r}")
    if expected is not None and checksum(data) != expected:
        raise PayloadCorrupt(f"{len(data)} bytes of {content_type} do not have the checksum they were written with")
    try:
        return codec.decode(data)
    except DecodeError:
        raise
    except Exception as exc:
        raise DecodeError(f"cannot read {len(data)} bytes of {content_type}: {exc}") from exc


# -- JSON ----------------------------------------------------------------------------------------
#
# What JSON has no word for is written as {"__type__": name, "__value__": ...} and comes back as its
# own type. A user's dict with a key "__type__" is wrapped the same way, so that it cannot be mistaken.

_MARK = "__type__"


def _bytes_out(value: bytes) -> str:
    return base64.b64encode(value).decode("ascii")


#: type -> (name, to JSON); the first match of an isinstance walk wins, so datetime stands before date.
_WRITERS: dict[type, tuple[str, Callable[[Any], Any]]] = {
    datetime: ("datetime", datetime.isoformat),
    date: ("date", date.isoformat),
    time: ("time", time.isoformat),
    timedelta: ("timedelta", lambda v: [v.days, v.seconds, v.microseconds]),
    Decimal: ("decimal", str),
    UUID: ("uuid", lambda v: v.hex),
    bytes: ("bytes", _bytes_out),
    bytearray: ("bytes", _bytes_out),
    set: ("set", list),
    frozenset: ("frozenset", list),
}
_READERS: dict[str, Callable[[Any], Any]] = {
    "datetime": datetime.fromisoformat,
    "date": date.fromisoformat,
    "time": time.fromisoformat,
    "timedelta": lambda v: timedelta(*v),
    "decimal": Decimal,
    "uuid": lambda v: UUID(hex=v),
    "bytes": lambda v: base64.b64decode(v, validate=True),
    "set": lambda v: set(map(_hashable, v)),
    "frozenset": lambda v: frozenset(map(_hashable, v)),
    "dict": dict,
}
#: What has nothing of the user's inside that could look like our mark.
_PLAIN = (str, int, float, type(None), bytes, bytearray, date, time, timedelta, Decimal, UUID)


def register_type(kind: type, name: str, to_json: Callable[[Any], Any], from_json: Callable[[Any], Any]) -> None:
    """Let JSON carry a type of yours: both sides must register it under the same name."""
    _WRITERS[kind] = (name, to_json)
    _READERS[name] = from_json


def _default(value: Any) -> Any:
    name, written = _written(value)
    return written if name is None else {_MARK: name, "__value__": written}


def _written(value: Any) -> tuple[str | None, Any]:
    """What stands for a value that JSON has no word for, and the name of its type; None if it said so itself."""
    writer = _WRITERS.get(type(value))
    if writer is None:
        hook = getattr(value, "__json__", None)
        if hook is not None and not isinstance(value, type):
            return None, hook()
        writer = next((row for kind, row in _WRITERS.items() if isinstance(value, kind)), None)
    if writer is None:
        raise TypeError(f"{type(value).__name__} is not JSON serializable")
    return writer[0], writer[1](value)


def _hashable(value: Any) -> Any:
    """A list in a set was a tuple."""
    return tuple(map(_hashable, value)) if isinstance(value, list) else value


def _revive(found: dict[str, Any]) -> Any:
    if _MARK not in found:
        return found
    reader = _READERS.get(found[_MARK]) if isinstance(found[_MARK], str) else None
    if reader is None or len(found) != 2:
        raise DecodeError(f"unknown JSON type {found[_MARK]!r}: register it with register_type on this side too")
    return reader(found["__value__"])


def _escape(value: Any) -> Any:
    """Wrap every dict of the user's that has our mark as a key."""
    if isinstance(value, dict):
        plain = {key: _escape(item) for key, item in value.items()}
        return {_MARK: "dict", "__value__": [[_key(k), v] for k, v in plain.items()]} if _MARK in plain else plain
    if isinstance(value, list | tuple):
        return [_escape(item) for item in value]
    if isinstance(value, _PLAIN):
        return value
    name, written = _written(value)
    return _escape(written) if name is None else {_MARK: name, "__value__": _escape(written)}


def _key(key: Any) -> str:
    """What JSON makes of a dict's key."""
    return key if isinstance(key, str) else next(iter(json.loads(json.dumps({key: 0}))))


def _has_mark(value: Any) -> bool:
    if isinstance(value, dict):
        return _MARK in value or any(map(_has_mark, value.values()))
    if isinstance(value, list | tuple | set | frozenset):
        return any(map(_has_mark, value))
    return not isinstance(value, _PLAIN) and _has_mark(_written(value)[1])


def _writer(allow_nan: bool) -> Callable[[Any], str]:
    """Return a function from values to text.

    `JSONEncoder.encode` makes its C half anew for every value and sees to circles, and that takes longer than
    writing two numbers does: 1.5 us against 0.9.
    """
    whole = json.JSONEncoder(separators=(",", ":"), default=_default, allow_nan=allow_nan)
    make = getattr(json.encoder, "c_make_encoder", None)
    if make is None:
        return whole.encode  # another Python than CPython
    half = make(None, _default, json.encoder.encode_basestring_ascii, None, ":", ",", False, False, allow_nan)

    def text_of(value: Any) -> str:
        try:
            return "".join(half(value, 0))
        except RecursionError:
            return whole.encode(value)  # says whether it is a circle

    return text_of


def _plain_value_of(text: str) -> Any:
    """Read text without marks; the C half alone is enough for text without spaces around it."""
    try:
        value, end = _scan(text, 0)
    except StopIteration:
        return _plain_decoder.decode(text)
    return value if end == len(text) else _plain_decoder.decode(text)


_text_of, _strict_text_of = _writer(allow_nan=True), _writer(allow_nan=False)
_plain_decoder = json.JSONDecoder()
_scan: Callable[[str, int], tuple[Any, int]] = _plain_decoder.scan_once  # type: ignore[attr-defined]
_marked_value_of = json.JSONDecoder(object_hook=_revive).decode


def _json_encode(value: Any, text_of: Callable[[Any], str] = _text_of) -> bytes:
    text = text_of(value)
    if '"__type__"' in text and _has_mark(value):
        text = text_of(_escape(value))
    return text.encode("ascii")


def _json_encode_strictly(value: Any) -> bytes:
    return _json_encode(value, _strict_text_of)


def _json_decode(data: bytes) -> Any:
    text = data.decode("utf-8")
    return _marked_value_of(text) if '"__type__"' in text else _plain_value_of(text)


JSON = Codec("json", "application/json", _json_encode, _json_decode)
#: The same without NaN and Infinity (`json_allow_nan=False`).
STRICT_JSON = Codec("json-strict", "application/json", _json_encode_strictly, _json_decode)
register(STRICT_JSON)
register(JSON, "application/json")


def _blame(value: Any, codec: Codec, where: str, exc: BaseException) -> str:
    path, culprit = _culprit(value, codec, where)
    return (
        f"{path} of type {type(culprit).__name__} cannot be written as {codec.name}: {exc}. "
        "Use something that can be (an id, a dict), give its class a __json__() method, "
        "or have its type written: localq.serialization.register_type"
    )


def _culprit(value: Any, codec: Codec, path: str) -> tuple[str, Any]:
    """Find the innermost part that the codec refuses; at most 50 deep."""
    for _ in range(50):
        for step, item in _parts(value):
            if not _can_write(item, codec):
                path, value = f"{path}{step}", item
                break
        else:
            break
    return path, value


def _parts(value: Any) -> list[tuple[str, Any]]:
    if isinstance(value, Mapping):
        return [(f"[{key!r}]", item) for key, item in value.items()]
    if isinstance(value, list | tuple):
        return [(f"[{index}]", item) for index, item in enumerate(value)]
    return []


def _can_write(value: Any, codec: Codec) -> bool:
    try:
        codec.encode(value)
    except Exception:
        return False
    return True


def serializer_of(content_type: str) -> str:
    """Return the name of the serializer that writes this content type.

    Raises:
        SerializerNotInstalled: there is none.
    """
    codec = _by_content_type.get(content_type)
    if codec is None:
        raise SerializerNotInstalled(f"no serializer is registered for content type {content_type!r}")
    return codec.name


# -- Exceptions as data --------------------------------------------------------------------------


def exception_data(exc: BaseException, serializer: str = "json") -> dict[str, Any]:
    """Describe an exception so that `exception_from` can build it again.

    Arguments that the serializer cannot write are kept as their repr. Celery's keys, and `exc_text`: what `str` says
    of it, where that does not follow from the arguments.
    """
    kind = type(exc)
    args = [_writable(arg, serializer) for arg in BaseException.args.__get__(exc)]  # type: ignore[attr-defined]
    data: dict[str, Any] = {"exc_type": kind.__qualname__, "exc_message": args, "exc_module": kind.__module__}
    text = _text(exc)
    # An __init__ of the user's may make something else of these arguments, which it has passed on itself.
    is_plain = kind.__str__ is BaseException.__str__ and not hasattr(kind.__init__, "__code__")
    if text is not None and not (is_plain and text == _plain_text(args)):
        data["exc_text"] = text
    notes = exc.__dict__.get("__notes__")
    if isinstance(notes, list):
        data["exc_notes"] = [note[:TEXT_LIMIT] for note in notes if isinstance(note, str)]
    return data


def _text(exc: BaseException) -> str | None:
    """Return what an exception says, cut to TEXT_LIMIT; None if its `__str__` fails."""
    try:
        return str(exc)[:TEXT_LIMIT]
    except Exception:
        return None


def _plain_text(args: Collection[Any]) -> str | None:
    """Return what an exception says that has these arguments and no words of its own."""
    return _text(Exception(*args))


def _writable(value: Any, serializer: str) -> Any:
    if value is None or type(value) in (str, int, float, bool):
        return value
    return value if _can_write(value, codecs.get(serializer)) else safe_repr(value)


def safe_repr(value: Any, limit: int = TEXT_LIMIT) -> str:
    """Return `repr(value)`, cut to `limit` characters; never raises."""
    try:
        text = repr(value)
    except Exception as exc:
        text = f"<unrepresentable {type(value).__name__}: {type(exc).__name__}>"
    return text if len(text) <= limit else text[: limit - 3] + "..."


def brief_repr(value: Any, limit: int = 1024, levels: int = 3) -> str:
    """Return a repr for people: so many levels of containers, so many characters, never an exception."""
    brief = reprlib.Repr()
    brief.maxlevel = max(levels, 1)
    brief.maxdict = brief.maxlist = brief.maxtuple = brief.maxset = brief.maxfrozenset = brief.maxdeque = 64
    brief.maxstring = brief.maxlong = brief.maxother = limit
    return safe_repr(_Brief(brief, value), limit)


class _Brief:
    """Has the repr of something else, cut."""

    def __init__(self, brief: reprlib.Repr, value: Any) -> None:
        self._brief, self._value = brief, value

    def __repr__(self) -> str:
        return self._brief.repr(self._value)


def traceback_text(exc: BaseException) -> str:
    """Return the traceback as Python prints it, its middle cut out if it is very long."""
    try:
        text = "".join(traceback_module.format_exception(exc))
    except Exception as failure:
        text = f"{type(exc).__qualname__}: its traceback cannot be written ({type(failure).__name__})"
    # A lone surrogate (a file name, say) can be printed and raised, but not kept as text.
    text = text.encode("utf-8", "backslashreplace").decode("utf-8")
    half = TEXT_LIMIT // 2
    return (
        text
        if len(text) <= TEXT_LIMIT
        else f"{text[:half]}\n... ({len(text) - 2 * half} characters) ...\n{text[-half:]}"
    )


def exception_from(data: Any, is_here: bool = False) -> BaseException:
    """Build an exception again from `exception_data`.

    Only classes of modules that are imported already are used, and only if they are exceptions; for any other name a
    class of that name is made up, so that the name and the message survive. So it is for what is no `Exception` and
    would end, or cancel, whoever asked: SystemExit, KeyboardInterrupt, CancelledError. One that does not come back
    with its text gets it by a class made up below its own.

    Args:
        is_here: it was raised in this very call, and may end it.

    Raises:
        SecurityError: the data names something that is not an exception.
    """
    if isinstance(data, BaseException):
        return data
    name, module = str(data["exc_type"]), str(data.get("exc_module") or "localq.exceptions")
    args, text = data["exc_message"], data.get("exc_text")
    args = tuple(args) if isinstance(args, list | tuple) else (args,)
    kind = _exception_class(name, module)
    if not issubclass(kind, Exception) and not is_here:
        kind = _stand_in(name.rpartition(".")[2], module)
    exc = _built(kind, args, text if isinstance(text, str) else None)
    for note in data.get("exc_notes", ()):
        exc.add_note(str(note))
    return exc


def _exception_class(name: str, module: str) -> type[BaseException]:
    found: Any = sys.modules.get(module)
    for part in name.split("."):
        found = getattr(found, part, None)
    if found is None:
        return _stand_in(name.rpartition(".")[2], module)
    if not (isinstance(found, type) and issubclass(found, BaseException)):
        raise SecurityError(f"a result names {module}.{name} as its exception, which is not an exception class")
    return found


def _stand_in(name: str, module: str) -> type[Exception]:
    return type(name, (Exception,), {"__module__": module})


def _built(kind: type[BaseException], args: tuple[Any, ...], text: str | None) -> BaseException:
    """Make an exception that can be shown, and says this text if one is known."""
    for make in (_called, _without_init):
        exc = make(kind, args)
        if exc is not None and _can_be_shown(exc) and text in (None, _text(exc)):
            return exc
    return _described(kind, args, (text if text is not None else _plain_text(args)) or "")


def _called(kind: type[BaseException], args: tuple[Any, ...]) -> BaseException | None:
    try:
        exc = kind(*args)
    except Exception:
        return None
    return exc if isinstance(exc, BaseException) else None


def _without_init(kind: type[BaseException], args: tuple[Any, ...]) -> BaseException | None:
    """Make an exception whose __init__ wants other arguments than it passed on: class and message survive."""
    try:
        exc = kind.__new__(kind)
        exc.args = args
    except Exception:
        return None
    return exc


def _can_be_shown(exc: BaseException) -> bool:
    try:
        str(exc), repr(exc)
    except Exception:
        return False
    return True


def _described(kind: type[BaseException], args: tuple[Any, ...], text: str) -> BaseException:
    """Make an exception that says this text, of a class below `kind`, or below the nearest above it that allows it."""
    shown: dict[str, Any] = {
        "__module__": kind.__module__, "__qualname__": kind.__qualname__, "__doc__": kind.__doc__,
        "__str__": lambda _: text, "__repr__": lambda _: f"{kind.__name__}({text!r})",
        "__reduce__": lambda self: (exception_from, (exception_data(self),)),
    }  # fmt: skip
    above = (base for base in kind.__mro__ if issubclass(base, BaseException))
    return next(exc for base in above if (exc := _below(base, kind.__name__, shown, args)) is not None)


def _below(base: Any, name: str, shown: dict[str, Any], args: tuple[Any, ...]) -> BaseException | None:
    """Make an exception of a class below `base`; None if there may be none below it (pydantic's ValidationError)."""
    try:
        made: Any = type(base)(name, (base,), shown)
    except Exception:
        return None
    exc = _called(made, args)
    return exc if exc is not None else _without_init(made, args)


def value_of(record: Any, conf: Any, is_here: bool = False) -> Any:
    """Read what a record holds: a value, or the exception of a state that stands for one; see `exception_from`."""
    if record.result is None:
        return TaskRevokedError("revoked") if record.state == states.REVOKED else None
    accept = conf.result_accept_content or conf.accept_content
    value = decode(record.result, record.content_type or "application/json", accept, record.checksum)
    return exception_from(value, is_here) if record.state in states.EXCEPTION_STATES else value
