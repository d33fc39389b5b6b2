"""Stamps and visitors."""

from celery import Celery, chain, chord, group
from celery.canvas import StampingVisitor
from observing import ordered, shows, value

app = Celery("stamping")


@app.task(name="t.read", bind=True)
def read(self, *_):
    return [dict(self.request.stamps or {}), ordered(self.request.stamped_headers or [])]


@app.task(name="t.again", bind=True)
def again(self):
    if not self.request.retries:
        raise self.retry(countdown=0)
    return dict(self.request.stamps)


@app.task(name="t.gather", bind=True)
def gather(self, found):
    return [*found, dict(self.request.stamps)]


def stamps(sig):
    return {**sig.options, "stamped_headers": ordered(sig.options.get("stamped_headers", []))}


class Says(StampingVisitor):
    def __init__(self, **found):
        self.found = found

    def on_signature(self, sig, **headers):
        return dict(self.found)


class Asked(StampingVisitor):
    def __init__(self):
        self.asked = []

    def answer(self, name, headers):
        self.asked.append([name, ordered(set(headers) - {"stamped_headers"})])
        return {f"by_{name}": True}

    def on_signature(self, sig, **headers):
        return self.answer("task", headers)

    def on_group_start(self, group, **headers):
        return self.answer("group", headers)

    def on_group_end(self, group, **headers):
        self.answer("group_end", headers)

    def on_chain_start(self, chain, **headers):
        return self.answer("chain", headers)

    def on_chain_end(self, chain, **headers):
        self.answer("chain_end", headers)

    def on_chord_header_end(self, sig, **header):
        self.answer("header_end", header)

    def on_chord_body(self, sig, **header):
        return self.answer("body", header)

    def on_callback(self, callback, **header):
        return self.answer("callback", header)

    def on_errback(self, errback, **header):
        return self.answer("errback", header)


@shows("F259")
def stamps_are_options_and_travel():
    sig = read.s().stamp(mark="x", other=[1])
    return [stamps(sig), value(sig.apply_async())]


@shows("F260")
def what_a_visitor_is_asked():
    found = []
    for flow in (
        read.s(), chain(read.s(), read.s()), group([read.s(), read.s()]), chord([read.s()], read.s()),
        read.s() | group([read.s(), read.s()]) | read.s(), read.s().set(link=[read.s()], link_error=[read.s()]),
    ):  # fmt: skip
        visitor = Asked()
        flow.stamp(visitor, kw=1)
        found.append(visitor.asked)
    return found


@shows("F261")
def of_stamps_of_the_same_name():
    found = []
    for append in (False, True):
        for own, visitor, given in (
            ("own", None, "given"), (None, "visitor", "given"), ("own", "visitor", None), ("own", "visitor", "given"),
            (["own"], None, ["given"]), (["own"], None, "given"), ({"a": 1, "b": 1}, None, {"a": 2}),
        ):  # fmt: skip
            sig = read.s()
            if own is not None:
                sig.stamp(mark=own)
            headers = {} if given is None else {"mark": given}
            sig.stamp(visitor and Says(mark=visitor), append_stamps=append, **headers)
            found.append(stamps(sig))
    return found


@shows("F260", "F261")
def what_a_visitor_lists_are_stamps_and_no_clone_changes_them():
    sig = read.s().stamp(Says(mark=1, priority=3, stamped_headers=["mark"]))
    return [stamps(sig), stamps(sig.clone(mark=2))]


@shows("F262")
def links_are_stamped():
    sig = read.s().set(link=[read.s()], link_error=[read.s()])
    sig.stamp(Asked(), kw=1)
    return [stamps(sig.options["link"][0]), stamps(sig.options["link_error"][0])]


@shows("F263")
def every_task_of_a_workflow_reads_its_own():
    flow = read.si() | group([read.si(), read.si()]) | gather.s()
    flow.stamp(Says(said=1), given="x")
    result = flow.apply_async()
    return [value(result), value(result.parent.parent)]


@shows("F263")
def a_retry_keeps_them():
    return value(again.s().stamp(mark=[1]).apply_async())


@shows("F265")
def the_task_itself_has_none():
    value(read.s().stamp(mark=1).apply_async())
    return [hasattr(read, "mark"), value(read.s().apply_async())]
