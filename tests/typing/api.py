"""What a type checker sees of the API: checked by `mypy --strict`, never run."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, assert_type

from localq import AsyncResult, GroupResult, LocalQ, Signature, Task, current_app, group, shared_task, signature
from localq.context import Context
from localq.contrib.abortable import AbortableAsyncResult, AbortableTask
from localq.result import EagerResult

app = LocalQ("proj", store="here")


# A bare decorator keeps parameters and result.
@app.task
def add(x: int, y: int = 0) -> int:
    return x + y


assert_type(add(1, 2), int)
assert_type(add.delay(1), AsyncResult[int])
assert_type(add.delay(1, y=2), AsyncResult[int])
assert_type(add.delay(1).get(), int)
assert_type(add.delay(1).get(timeout=5, propagate=False), int)
assert_type(add.delay(1).retry(), AsyncResult[int])
assert_type(add.delay(1).retry().get(), int)
assert_type(add.apply_async((1, 2), countdown=5), AsyncResult[int])
assert_type(add.apply_async((1, 2), None, "id", link=add.s(3), link_error=[add.s()], shadow="sum"), AsyncResult[int])
assert_type(add.apply((1, 2)), EagerResult[int])
assert_type(add.apply((1, 2), throw=True, retries=1, headers={"trace": "t"}), EagerResult[int])
assert_type(add.signature_from_request(), Signature)
assert_type(add.max_retries, int | None)
assert_type(add.request.timelimit, tuple[float | None, float | None])
assert_type(add.request.children, list[Any])
assert_type(add.request.as_execution_options(), dict[str, Any])
add.apply_async((1, 2), task_id=5)  # type: ignore[arg-type]
add.update_state(state="PROGRESS", meta={"done": 1})
assert_type(add.apply((1, 2)).get(), int)
assert_type(add.s(1), Signature)
assert_type(add.si(1), Signature)
assert_type(add.name, str)
assert_type(add.request, Context)
add.delay("1")  # type: ignore[arg-type]
add.delay()  # type: ignore[call-arg]
add.delay(1, 2, 3)  # type: ignore[call-arg]
add.delay(1, z=2)  # type: ignore[call-arg]
add("1")  # type: ignore[arg-type]


# With options.
@app.task(name="proj.greet", max_retries=5)
def greet(name: str) -> str:
    return f"hello {name}"


assert_type(greet.delay("you"), AsyncResult[str])
assert_type(greet("you"), str)
greet.delay(1)  # type: ignore[arg-type]


# With empty parentheses.
@app.task()
def empty() -> None: ...


assert_type(empty.delay(), AsyncResult[None])


# Bound: the task itself is no argument of a call.
@app.task(bind=True, acks_late=True)
def bound(self: Task[..., Any], x: int) -> list[int]:
    if x < 0:
        raise self.retry(countdown=1)
    return [x]


assert_type(bound.delay(1), AsyncResult[list[int]])
assert_type(bound.delay(1).get(), list[int])
assert_type(bound(1), list[int])
bound.delay()  # type: ignore[call-arg]
bound.delay("1")  # type: ignore[arg-type]
bound.delay(bound, 1)  # type: ignore[call-arg, arg-type]


# A coroutine's task: called, it is awaited; sent, its result is what the function returns at last.
@app.task
async def fetch(url: str) -> int:
    await asyncio.sleep(0)
    sent = await add.adelay(1)
    assert_type(sent, AsyncResult[int])
    assert_type(await fetch(url), int)
    return await sent.aget(timeout=5)


fetching: Coroutine[Any, Any, int] = fetch("url")
assert_type(fetch.delay("url"), AsyncResult[int])
assert_type(fetch.apply_async(("url",), countdown=1).get(), int)
assert_type(fetch.apply(("url",)), EagerResult[int])
assert_type(fetch.s("url"), Signature)
fetch.delay(1)  # type: ignore[arg-type]


@app.task(bind=True, soft_time_limit=5)
async def fetch_bound(self: Task[..., Any], url: str) -> bytes:
    return url.encode()


assert_type(fetch_bound.delay("url").get(), bytes)
fetch_bound.delay()  # type: ignore[call-arg]


@app.task(name="proj.fetch")
async def fetch_named(url: str) -> str:
    result = await fetch.aapply_async((url,), countdown=1)
    assert_type(result, AsyncResult[int])
    group_of = app.GroupResult("id", [result])
    assert_type(await group_of.aget(), list[Any])
    return url


assert_type(fetch_named.delay("url"), AsyncResult[str])


@shared_task
async def fetch_shared(url: str) -> str:
    return url


assert_type(fetch_shared.delay("url"), AsyncResult[str])
fetching_shared: Coroutine[Any, Any, str] = fetch_shared("url")


def accepts(task: Task[[str], int]) -> None:
    assert_type(task.delay("url"), AsyncResult[int])


accepts(fetch)


# What is known only by name is Any.
assert_type(app.send_task("proj.add", (1, 2)), AsyncResult[Any])
assert_type(app.AsyncResult("id"), AsyncResult[Any])
assert_type(app.GroupResult("id"), GroupResult)


def handle(result: AsyncResult[int]) -> bool:
    assert_type(result.id, str)
    assert_type(result.state, str)
    assert_type(result.traceback, str | None)
    assert_type(result.ready(), bool)
    return result.successful()


handle(add.delay(1))
handle(greet.delay("you"))  # type: ignore[arg-type]


# Other corners that a Celery user touches.
with LocalQ("other") as other:
    assert_type(other, LocalQ)
group(add.s(i) for i in range(3)).apply_async()
signature("proj.add", (1, 2))
current_app().send_task("proj.add")


def generic(task: Task[[int], str]) -> AsyncResult[str]:
    return task.delay(1)


# Shared tasks are typed as those of an app.
@shared_task
def shared(x: int) -> int:
    return x


assert_type(shared(1), int)
assert_type(shared.delay(1), AsyncResult[int])
assert_type(shared.apply_async((1,)).get(), int)
shared.delay("1")  # type: ignore[arg-type]


@shared_task(name="lib.greet", max_retries=5)
def shared_greet(name: str) -> str:
    return name


assert_type(shared_greet.delay("you"), AsyncResult[str])
shared_greet.delay(1)  # type: ignore[arg-type]


@shared_task(bind=True)
def shared_bound(self: Task[..., Any], x: int) -> list[int]:
    return [x]


assert_type(shared_bound.delay(1).get(), list[int])
shared_bound.delay("1")  # type: ignore[arg-type]


# Task classes, registered as a class or as an object.
class Scale(Task[[int], float]):
    factor = 2.0

    def run(self, x: int) -> float:
        return x * self.factor


scale = app.register_task(Scale)
assert_type(scale, Scale)
assert_type(app.register_task(Scale(), max_retries=1), Scale)
assert_type(scale.delay(1), AsyncResult[float])
assert_type(scale(1), float)
assert_type(scale.factor, float)
scale.delay("1")  # type: ignore[arg-type]


# A class of tasks that can be asked to stop.
class Count(AbortableTask[[int], int]):
    def run(self, limit: int) -> int:
        return 0 if self.is_aborted() else limit


assert_type(app.register_task(Count).delay(1), AbortableAsyncResult[int])
assert_type(app.register_task(Count).delay(1).abort(), bool)
