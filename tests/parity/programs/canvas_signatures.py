"""Signatures: their dicts, what is made of them, and how they show."""

import json

from celery import Celery, chain, chord, group, signature
from celery.canvas import Signature, maybe_signature
from observing import raised, shows, value

app = Celery("canvas_signatures")


@app.task(name="t.add")
def add(x, y=0):
    return x + y


@app.task(name="t.tsum")
def tsum(numbers):
    return sum(numbers)


@shows("F194")
def the_dicts_of_signatures():
    return [
        dict(sig)
        for sig in (
            add.s(1, y=2), add.si(1), add.signature((1,), {"y": 2}, queue="q"), add.subtask((1,), immutable=True),
            signature("t.add", (1,), {"y": 2}, {"queue": "q"}, immutable=True, priority=3), signature(dict(add.s(1))),
        )
    ]  # fmt: skip


@shows("F194", "F204")
def a_round_trip_through_json():
    flow = add.s(1) | group(add.s(2), add.s(3)) | tsum.s()
    again = signature(json.loads(json.dumps(flow)))
    return [json.dumps(again) == json.dumps(flow), value(again.apply_async())]


@shows("F195")
def attributes():
    sig = add.s(1).set(task_id="i", root_id="r")
    return [sig.task, sig.name, sig.args, sig.kwargs, sig.options, sig.immutable, sig.id, sig.root_id, sig.parent_id]


@shows("F196", "F197", "F205")
def merging():
    sig = add.s(2, k=1).set(queue="q", group_id="g")
    mixed = sig.clone((1,), {"k": 2, "j": 3}, queue="r", group_id="h")
    fixed = add.si(2).clone((1,), {"k": 2}, queue="r")
    return [dict(mixed), dict(fixed), dict(sig.partial((0,))), dict(sig)]


@shows("F196")
def calling():
    return [add.s(2)(1), value(add.s(2).delay(1)), value(add.s(y=2).apply_async((1,), {"y": 3})), ~add.s(1, 1)]


@shows("F198", "F199")
def replacing_and_setting():
    sig = add.s(1).set(immutable=True, queue="q")
    return [dict(sig), dict(sig.replace(args=(2,), kwargs={"y": 1}, options={})), dict(sig)]


@shows("F200")
def frozen_ids():
    sig = add.s(1)
    result = sig.freeze("mine", group_id="g", root_id="r", parent_id="p", group_index=2)
    known = {key: sig.options[key] for key in ("task_id", "group_id", "root_id", "parent_id", "group_index")}
    return [result.id, known, sig.freeze("other").id, "reply_to" in sig.options]


@shows("F201", "F202")
def links():
    sig = add.s(1).set(link=add.s(2))
    returned = [sig.link(add.s(3)), sig.link(add.s(3)), sig.link(dict(add.s(4))), sig.on_error(add.s(5)) is sig]
    return [returned, sig.options, [dict(each)["args"] for each in add.s(1).on_error(add.s(2)).flatten_links()]]


@shows("F202", "F217", "F248", "F251")
def reprs():
    two = [add.s(1), add.s(2)]
    return [
        repr(add.s(1, y="x")), add.s(2).reprcall(1, y=3), add.si(2).reprcall(1), repr(chain(two)),
        repr(group(two)), repr(group()), repr(chord(two, tsum.s())), repr(chord(two, tsum.s() | add.s(1) | add.s(2))),
        repr(chord(two)), repr(add.map([1, 2])), repr(add.starmap([(1, 2)])),
    ]  # fmt: skip


@shows("F204", "F207")
def dicts_anywhere():
    one, two = dict(add.s(1)), dict(add.s(2))
    return [
        maybe_signature(None), type(maybe_signature(one)).__name__, value(chain(signature(one), signature(two))()),
        value(group([signature(one), signature(two)])()),
        value(chord([one, two], dict(tsum.s()))()), dict(Signature.from_dict(one)),
    ]  # fmt: skip


@shows("F208")
def a_task_not_registered_here_is_sent_by_name():
    result = signature("elsewhere.task", (1,), app=app).apply_async(queue="nobody")
    return [result.state, bool(result.id)]


@shows("F203")
def what_cannot_be_joined():
    return [raised(lambda: add.s(1) | 3), raised(lambda: chain(add.s(1), 3))]
