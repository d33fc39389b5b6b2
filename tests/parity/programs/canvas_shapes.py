"""Workflows: of what types they are, what they give, and the form of their results."""

import json

from celery import Celery, chain, chord, group, signature
from observing import described, shows, value

app = Celery("canvas_shapes")


@app.task(name="t.add")
def add(x, y=0):
    return x + y


@app.task(name="t.tsum")
def tsum(numbers):
    return sum(numbers)


@app.task(name="t.ident")
def ident(x):
    return x


def form(sig):
    """A workflow as a drawing: (a chain), [a group], {header body}."""
    kind = sig.get("subtask_type")
    if kind == "chord":
        header = sig.tasks.tasks if isinstance(sig.tasks, group) else sig.tasks
        return "{[" + " ".join(map(form, header)) + "] " + form(sig.body) + "}"
    if kind in ("chain", "group"):
        left, right = "()" if kind == "chain" else "[]"
        return left + " ".join(map(form, sig.tasks)) + right
    return sig.task


def shape(result):
    """A result's tuple without its ids: its parents, and its members."""

    def of(found):
        (_, above), members = found
        return [of(above) if above else "-", "-" if members is None else [of(each) for each in members]]

    return of(result.as_tuple())


def parts():
    return add.s(1), group([add.s(1), add.s(2)]), group([add.s(1)]), chain(add.s(1), add.s(2))


@shows("F203", "F211", "F218", "F220", "F224", "F226")
def forms_of_what_is_joined():
    a, g, one, c = parts()
    flows = [
        a | a, a | a | a, a | g, a | one, g | a, one | a, g | g, g | g | a, a | g | a, a | g | a | a, a | g | g | a,
        g | a | a, g | a | g, c | c, c | g, g | c, c | one, chain() | a, chain() | g, a | chain(), g | group(),
        c | group(), group() | a, chain(a, one, a), chain([a, g, a]), chain(a, c, a),
    ]  # fmt: skip
    return [form(flow) for flow in flows]


@shows("F220")
def a_chain_that_begins_with_a_group():
    a, g, _, _ = parts()
    return [form(flow) for flow in (chain(g, a), chain(g, g, a), chain([g]))]


@shows("F222")
def parents_within_a_chain_that_is_a_body():
    result = chord([add.s(1)], tsum.s() | add.s(1) | add.s(2)).apply_async()
    return [value(result), shape(result)]


@shows("F194", "F209", "F233")
def dicts_of_workflows():
    two = [add.s(1), add.s(2)]
    return [
        json.loads(json.dumps(flow)) for flow in (chain(two), group(two), group(two, queue="q"), chord(two, tsum.s()))
    ]


@shows("F210", "F211", "F219", "F221", "F222", "F225")
def values_and_results():
    found = []
    for flow in (
        chain(add.s(1), add.s(2), add.s(3)), group([add.s(1), add.s(2)]), add.s(1) | group([add.s(1), add.s(2)]),
        group([add.s(1), add.s(2)]) | tsum.s(), add.s(1) | group([add.s(1), add.s(2)]) | tsum.s() | add.s(1),
        group([chain(add.s(1), add.s(2)), add.s(3)]), chord([add.s(1), chord([add.s(2)], tsum.s())], tsum.s()),
        group([add.s(1), add.s(2)]) | group([tsum.s(), ident.s()]), group([group([add.s(1)]), add.s(2)]),
        group([chain(add.s(1), group([add.s(1), add.s(2)]))]), group([]) | ident.s(), group([]),
        add.s(1) | group([add.s(1)]) | add.s(2),
        chain(group([]), add.s(1), group([]), add.s(2)),
    ):  # fmt: skip
        result = flow.apply_async()
        found.append([value(result), shape(result)])
    return found


@shows("F200", "F217", "F222")
def what_freeze_returns_is_what_is_then_sent():
    found = []
    for flow in (chain(add.s(1), add.s(2)), group([add.s(1), add.s(2)]), add.s(1) | group([add.s(1), add.s(2)])):
        frozen = flow.freeze()
        sent = flow.apply_async()
        found.append([frozen.id == sent.id, value(sent), shape(frozen)])
    return found


@shows("F211", "F229")
def empty_ones():
    return [chain()() is None, chain([]).apply_async() is None, value(group()()), value(group([chain(), add.s(1)])())]


@shows("F210")
def a_group_takes_no_links():
    found = []
    for name in ("link", "link_error"):
        try:
            group([add.s(1)]).apply_async(**{name: add.s(2)})
        except TypeError as exc:
            found.append(described(exc))
    return found


@shows("F214", "F215", "F240")
def links_of_groups_and_chords():
    members, flow = group([add.s(1), add.s(2)]), chord([add.s(1)], tsum.s())
    members.link(add.s(3))
    members.link_error(add.s(4))
    flow.link(add.s(5))
    return [[dict(task.options) for task in members.tasks], dict(flow.body.options), flow.options]


@shows("F216")
def skewed():
    def countdowns(**given):
        return [task.options["countdown"] for task in group([add.s(i) for i in range(4)]).skew(**given).tasks]

    return [countdowns(), countdowns(start=1, stop=3), countdowns(start=0, stop=10, step=4)]


@shows("F210", "F233", "F243")
def partial_arguments():
    return [
        value(group([add.s(1), add.si(2, 2), add.s(3)])(10)), value(chain(add.s(1), add.s(2))(10)),
        value(chord([add.s(1), add.s(2)], tsum.s()).apply_async((10,))),
        value(chord([add.s(1)])(tsum.s(), interval=1, max_retries=3)),
    ]  # fmt: skip


@shows("F251", "F252", "F253", "F254")
def maps():
    return [
        value(tsum.map([[1], [2, 3]]).apply_async()), value(add.starmap([(1, 1), (2, 2)]).apply_async()),
        value(add.chunks(zip(range(5), range(5), strict=True), 2)()), value((add.s(1) | add.map([1, 2])).apply_async()),
        value(group([add.map([1]), add.map([2])])()), add.map([1]).task, add.map([1]).immutable,
        add.map([1]).freeze("mine").id, value(signature(json.loads(json.dumps(add.starmap([[1, 1]])))).apply_async()),
    ]  # fmt: skip


@shows("F248")
def immutable_chords():
    flow = chord([add.s(1), add.s(2)], tsum.s())
    flow.set_immutable(True)
    return [[task.immutable for task in flow.tasks], flow.body.immutable]


@shows("F228", "F231")
def options_of_a_chain_are_for_its_ends():
    flow = chain(add.s(1), add.s(2)).set(link_error=[add.s(9)], link=[add.s(8)])
    return [dict(task.options) for task in (flow | add.s(3)).tasks]
