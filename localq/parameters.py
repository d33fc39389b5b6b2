"""What a task can be called with: checked where it is called, and kept where it is called again in another way.

Must not run a task, nor import `inspect`, which takes 10 ms: a function's code object says it all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from keyword import iskeyword
from typing import Any


def signature_check(run: Callable[..., Any]) -> Callable[..., None] | None:
    """Make a function that takes what `run` takes and does nothing; None if nobody can tell.

    Calling it raises Python's own TypeError for arguments that do not fit, at the price of one call
    (`inspect.Signature.bind`: thirty, and the import of inspect).
    """
    function, skip = getattr(run, "__func__", run), int(hasattr(run, "__func__"))
    while hasattr(function, "__wrapped__"):
        function = function.__wrapped__
    code = getattr(function, "__code__", None)
    if code is None:
        return None
    scope: dict[str, Any] = {}
    name = _plain_name(run)
    # Only parameter names of a function that exists get into this text.
    exec(f"def {name}({_parameters(function, code, skip)}): pass", scope)  # noqa: S102
    return scope[name]  # type: ignore[no-any-return]


def _parameters(function: Any, code: Any, skip: int) -> str:
    """Write a function's parameters, every default as None, leaving out the first `skip`."""
    names = code.co_varnames
    plain, keyword_only = code.co_argcount, code.co_kwonlyargcount
    optional = plain - len(function.__defaults__ or ())
    parts = [f"{each}=None" if at >= optional else each for at, each in enumerate(names[:plain])]
    if code.co_posonlyargcount:
        parts.insert(code.co_posonlyargcount, "/")
    parts = parts[skip:] if parts[skip : skip + 1] != ["/"] else parts[skip + 1 :]
    has_star, has_stars = bool(code.co_flags & 4), bool(code.co_flags & 8)
    after = plain + keyword_only
    if has_star or keyword_only:
        parts.append(f"*{names[after]}" if has_star else "*")
    defaults = function.__kwdefaults__ or {}
    parts += [f"{each}=None" if each in defaults else each for each in names[plain : plain + keyword_only]]
    if has_stars:
        parts.append(f"**{names[after + has_star]}")
    return ", ".join(parts)


def _plain_name(run: Callable[..., Any]) -> str:
    name = getattr(run, "__name__", "task")
    return name if name.isidentifier() and not iskeyword(name) else "task"


def arguments(
    signature: Any, before: tuple[Sequence[Any], Mapping[str, Any]], args: Any, kwargs: Any
) -> tuple[Sequence[Any], Mapping[str, Any]]:
    """Return what the next attempt is called with: what is said anew, and of what was said that which still fits.

    Args:
        signature: a function with the task's parameters, or None if nobody knows them.
        before: this attempt's.
        args, kwargs: those said anew; None if nothing is.
    """
    old_args, old_kwargs = before
    if args is not None and kwargs is None:
        named = set(_positional(signature)[: len(args)])
        return args, {name: value for name, value in old_kwargs.items() if name not in named}
    if kwargs is not None and args is None:
        left, kept = dict(kwargs), list(old_args)
        for at, name in enumerate(_positional(signature)[: len(kept)]):
            if name in left:
                kept[at] = left.pop(name)
        return kept, left
    return (old_args if args is None else args), (old_kwargs if kwargs is None else kwargs)


def _positional(signature: Any) -> list[str | None]:
    """Name a function's positional parameters; None for those that cannot be given by name."""
    if signature is None:
        return []
    code = signature.__code__
    names = code.co_varnames[: code.co_argcount]
    return [None if at < code.co_posonlyargcount else name for at, name in enumerate(names)]
