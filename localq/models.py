"""Tasks with `pydantic=True`: arguments that are models travel as plain data and arrive as models.

    caller   Model -> data      if the worker makes an equal model of it again; else the serializer says no
    worker   data -> Model      by the parameter's annotation, `Model` or `Model | None`
    worker   Model -> data      what is returned, if the annotation of the result says so

Imported only for tasks that ask for it: it needs pydantic, and `inspect`. Must not know messages.
"""

from __future__ import annotations

import functools
import inspect
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from localq.exceptions import ImproperlyConfigured

try:
    from pydantic import BaseModel
except ModuleNotFoundError as missing:
    raise ImproperlyConfigured(
        "a task says pydantic=True, and pydantic is not installed: pip install 'localq[pydantic]'"
    ) from missing

_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
_NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


class Models:
    """The models among a function's parameters, and in its result.

    Args:
        task: whose options say how models are made and written, whose app and name validators get as context.
        run: its function.
    """

    def __init__(self, task: Any, run: Callable[..., Any]) -> None:
        self._task, self._run = task, run
        self._signature = inspect.signature(run)
        hints = _hints(run, self._signature)
        kinds = {name: parameter.kind for name, parameter in self._signature.parameters.items()}
        self._positional = [name for name, kind in kinds.items() if kind in _POSITIONAL]
        named = {name for name, kind in kinds.items() if kind in _NAMED}
        self._named = {name: name for name in named}
        #: Parameter -> its model, and whether None may stand in its place.
        self._models = {
            name: found for name in {*self._positional, *named} if (found := _model(hints.get(name)))
        }  # fmt: skip
        self._result: Any = _class(hints.get("return"))[0]
        self._context = {
            **(task.pydantic_context or {}), "celery_app": task.app, "celery_task_name": task.name
        }  # fmt: skip
        self._how_to_dump = {"mode": "json", **(task.pydantic_dump_kwargs or {})}

    def validating(self) -> Callable[..., Any]:
        """Make the `run` that makes models of data, calls the function, and data of the model it returns.

        It raises pydantic's ValidationError for data that is no such model.
        """
        if inspect.iscoroutinefunction(self._run):

            @functools.wraps(self._run)
            async def later(*args: Any, **kwargs: Any) -> Any:
                bound = self._bound(args, kwargs)
                return self._returned(await self._run(*bound.args, **bound.kwargs))

            return later

        @functools.wraps(self._run)
        def run(*args: Any, **kwargs: Any) -> Any:
            bound = self._bound(args, kwargs)
            return self._returned(self._run(*bound.args, **bound.kwargs))

        return run

    def dumped(
        self, args: Iterable[Any], kwargs: Mapping[str, Any], fed: int = 0
    ) -> tuple[Iterable[Any], Mapping[str, Any]]:
        """Return a caller's arguments, models written as data.

        Args:
            fed: how many values will stand before the positional ones.
        """
        if not any(isinstance(value, BaseModel) for value in (*args, *kwargs.values())):
            return args, kwargs
        names: list[str | None] = [*self._positional[fed:]]
        given = list(args)
        names += [None] * (len(given) - len(names))
        return (
            [self._data(name, value) for name, value in zip(names, given, strict=False)],
            {name: self._data(self._named.get(name), value) for name, value in kwargs.items()},
        )

    def _bound(self, args: Any, kwargs: Any) -> inspect.BoundArguments:
        bound = self._signature.bind(*args, **kwargs)
        for name, value in bound.arguments.items():
            if self._is_model(name, value):
                bound.arguments[name] = self._made(name, value)
        return bound

    def _returned(self, value: Any) -> Any:
        if self._result is not None and isinstance(value, self._result) and isinstance(value, BaseModel):
            return value.model_dump(**self._how_to_dump)
        return value

    def _is_model(self, name: str, value: Any) -> bool:
        found = self._models.get(name)
        return found is not None and not (value is None and found[1])

    def _made(self, name: str, value: Any) -> Any:
        kind: Any = self._models[name][0]
        return kind.model_validate(value, strict=bool(self._task.pydantic_strict), context=self._context)

    def _data(self, name: str | None, value: Any) -> Any:
        """Write a model as data if it comes out of it again as it was; another is the serializer's affair."""
        if name is None or not isinstance(value, BaseModel) or hasattr(type(value), "__json__"):
            return value
        if not self._is_model(name, value):
            return value
        try:
            data = value.model_dump(**self._how_to_dump)
            return data if self._made(name, data) == value else value
        except Exception:
            # The model's own validators run here, and some may need what only a worker has.
            return value


def _hints(run: Any, signature: inspect.Signature) -> dict[str, Any]:
    """Return annotations by name, texts among them as what they name where that can be found."""
    try:
        return typing.get_type_hints(run)
    except (NameError, AttributeError, TypeError):
        found = {name: parameter.annotation for name, parameter in signature.parameters.items()}
        return {**found, "return": signature.return_annotation}


def _class(annotation: Any) -> tuple[type | None, bool]:
    """Return the class that an annotation names, alone or `| None`, and whether it may be None."""
    may_be_none = False
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        kinds = typing.get_args(annotation)
        others = [kind for kind in kinds if kind is not type(None)]
        may_be_none = len(others) < len(kinds)
        annotation = others[0] if may_be_none and len(others) == 1 else None
    return (annotation if inspect.isclass(annotation) else None), may_be_none


def _model(annotation: Any) -> tuple[type, bool] | None:
    kind, may_be_none = _class(annotation)
    return (kind, may_be_none) if kind is not None and issubclass(kind, BaseModel) else None
