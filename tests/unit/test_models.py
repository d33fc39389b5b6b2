"""Tasks whose arguments and results are pydantic's models."""

from __future__ import annotations

import asyncio
from typing import Any, Optional

import pytest
from working import work_off

from localq import EagerResult, LocalQ, Task, chain
from localq.exceptions import EncodeError

pydantic = pytest.importorskip("pydantic")


class Point(pydantic.BaseModel):
    x: int
    y: int = 0


class Far(Point):
    z: int = 9


class Secret(pydantic.BaseModel):
    word: str
    hidden: str = pydantic.Field(default="", exclude=True)


@pytest.fixture
def app():
    made = LocalQ("proj", store="memory:", task_eager_propagates=True)
    yield made
    made.close()


def got(result):
    if not isinstance(result, EagerResult):
        work_off(result.backend.app)
    return result.get(timeout=0)


@pytest.mark.row("N48", "F057")
def test_arguments_arrive_as_models_and_a_model_comes_back_as_data(app):
    @app.task(pydantic=True)
    def move(point: Point, by: int = 1, *, other: Point | None = None, old: Optional[Point] = None) -> Point:
        assert isinstance(point, Point)
        assert all(each is None or isinstance(each, Point) for each in (other, old))
        return Point(x=point.x + by + (other.x if other else 0))

    for call in (move.delay, lambda *args, **kwargs: move.apply(args, kwargs)):
        assert got(call({"x": 1})) == {"x": 2, "y": 0}
        assert got(call(Point(x=1), by=2)) == {"x": 3, "y": 0}
        assert got(call(point={"x": "5"}, other=Point(x=10), old={"x": 1})) == {"x": 16, "y": 0}
    assert move(Point(x=1)) == {"x": 2, "y": 0}
    assert move.run({"x": 1}) == {"x": 2, "y": 0}


@pytest.mark.row("N48")
def test_what_is_no_such_model_is_the_tasks_failure_that_says_why(app):
    @app.task(pydantic=True)
    def move(point: Point): ...

    for given in ({"x": "far"}, {}, 5, None):
        result = move.delay(given)
        work_off(app)
        assert (result.state, type(result.result).__name__) == ("FAILURE", "ValidationError")
        assert "validation error for Point" in result.traceback
        assert "validation error for Point" in str(result.result)
        assert isinstance(result.result, ValueError)
    with pytest.raises(pydantic.ValidationError):
        move({"x": "far"})


@pytest.mark.row("N48")
def test_strict_takes_no_text_for_a_number(app):
    @app.task(pydantic=True, pydantic_strict=True)
    def move(point: Point): ...

    result = move.delay({"x": "5"})
    work_off(app)
    assert result.state == "FAILURE"


@pytest.mark.row("N48")
def test_validators_get_the_context_the_app_and_the_name(app):
    class Looking(pydantic.BaseModel):
        x: int

        @pydantic.field_validator("x")
        @classmethod
        def look(cls, value: int, info: Any) -> int:
            return value * info.context["factor"] if info.context["celery_app"] is app else 0

    globals()["Looking"] = Looking

    @app.task(name="proj.look", pydantic=True, pydantic_context={"factor": 3})
    def look(x: Looking):
        return x.x

    assert got(look.delay({"x": 2})) == 6


@pytest.mark.row("N48")
def test_how_models_are_written_is_up_to_the_task(app):
    @app.task(pydantic=True, pydantic_dump_kwargs={"exclude_defaults": True})
    def move(point: Point) -> Point:
        return point

    assert got(move.delay({"x": 1})) == {"x": 1}


@pytest.mark.row("N48")
def test_a_model_that_would_not_come_back_as_it_is_is_left_to_the_serializer(app):
    @app.task(pydantic=True)
    def move(point: Point, secret: Secret | None = None): ...

    for args in ((Far(x=1),), (Point(x=1), Secret(word="w", hidden="h"))):
        with pytest.raises(EncodeError):
            move.delay(*args)
    move.delay(Point(x=1), Secret(word="w"))


@pytest.mark.row("N48")
def test_only_a_result_that_is_annotated_is_written_as_data(app):
    @app.task(pydantic=True)
    def plain(point: Point):
        return point.x

    @app.task(pydantic=True)
    def odd(point: Point) -> int:
        return point

    assert got(plain.delay(Point(x=4))) == 4
    with pytest.raises(EncodeError):
        got(odd.delay(Point(x=4)))


@pytest.mark.row("N48")
def test_bound_tasks_classes_and_retries_have_models_too(app):
    @app.task(bind=True, pydantic=True, autoretry_for=(OSError,), retry_kwargs={"countdown": 0})
    def work(self, point: Point, *rest: Any, **more: Any) -> Point:
        if not self.request.retries:
            raise self.retry(args=(Point(x=7),), countdown=0)
        if self.request.retries == 1:
            raise OSError
        return point

    class Mine(Task):
        name = "proj.mine"
        pydantic = True

        def run(self, point: Point) -> Point:
            return point

    assert got(work.delay(Point(x=1), 2, more=3)) == {"x": 7, "y": 0}
    assert got(app.register_task(Mine).delay(Point(x=3))) == {"x": 3, "y": 0}


@pytest.mark.row("N48")
@pytest.mark.parametrize("is_eager", [False, True])
def test_a_chain_hands_them_on(app, is_eager):
    app.conf.task_always_eager = is_eager

    @app.task(pydantic=True)
    def move(point: Point, by: Point) -> Point:
        return Point(x=point.x + by.x)

    assert got(chain(move.s(Point(x=1), by=Point(x=2)), move.s(Point(x=10)))()) == {"x": 13, "y": 0}


@pytest.mark.row("N48")
def test_coroutine_functions_have_models_too(app):
    @app.task(pydantic=True)
    async def move(point: Point) -> Point:
        return Point(x=point.x + 1)

    assert asyncio.iscoroutinefunction(move.run)
    assert asyncio.run(move.run({"x": 1})) == {"x": 2, "y": 0}


@pytest.mark.row("N48")
def test_arguments_are_checked_where_it_is_called(app):
    @app.task(pydantic=True)
    def move(point: Point): ...

    with pytest.raises(TypeError, match="point"):
        move.delay()


@pytest.mark.row("N48")
def test_annotations_that_nobody_can_resolve_are_no_models(app):
    @app.task(pydantic=True)
    def move(point: Missing, other: Point):  # noqa: F821
        return [point, other]

    assert got(move.delay(1, 2)) == [1, 2]
