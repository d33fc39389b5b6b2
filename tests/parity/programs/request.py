"""What a task sees in `self.request`."""

import os
import re

from celery import Celery, chain, chord, group
from observing import outcome, raised, shows, value

app = Celery("request")


@app.task(bind=True)
def read(self, *names):
    return {name: getattr(self.request, name) for name in names}


@app.task(bind=True, max_retries=2)
def try_again(self, *names):
    if self.request.retries < 2:
        raise self.retry(countdown=0.01)
    return {name: getattr(self.request, name) for name in names}


@app.task(bind=True)
def beget(self):
    child = read.delay("id", "parent_id", "root_id")
    return [self.request.id, child.id]


@app.task
def add(x, y):
    return x + y


@app.task(bind=True, time_limit=60, soft_time_limit=50)
def limited(self):
    return self.request.timelimit


@app.task(bind=True)
def execution(self):
    return sorted(self.request.as_execution_options())


def of(*names, task=read, **options):
    """Send a task that reads these fields of its request."""
    return value(task.apply_async(names, **options))


@shows("F066", "F070")
def the_id_is_the_results_and_the_correlation_id():
    result = read.delay("id", "correlation_id")
    seen = value(result)
    return [seen["id"] == result.id, seen["correlation_id"] == result.id, len(result.id)]


@shows("F066", "F100")
def the_callers_own_id_is_kept():
    return of("id", "correlation_id", task_id="my-own-id")


@shows("F066")
def the_callers_own_correlation_id_is_kept():
    seen = of("id", "correlation_id", task_id="the-tasks-id", correlation_id="my-correlation")
    return [seen, of("properties", correlation_id="my-correlation")["properties"]["correlation_id"]]


@shows("F067", "F091")
def the_name_and_its_companions():
    return of("task", "lang", "shadow", "argsrepr", "kwargsrepr", shadow="other.name")


@shows("F068")
def a_member_of_a_group_knows_its_place():
    result = group(read.s("group", "group_index") for _ in range(3))()
    seen = value(result)
    return [[each["group"] == result.id, each["group_index"]] for each in seen]


@shows("F068", "F069")
def outside_a_group_there_is_none():
    return of("group", "group_index", "chord")


@app.task(bind=True)
def body_name(self):
    return (self.request.chord or {}).get("task", "none")


@app.task
def keep(values):
    return values


@shows("F069")
def the_chord_of_a_member_is_the_signature_of_the_body():
    return value(chord([body_name.s(), body_name.s()])(keep.s()))


@shows("F071")
def arguments_are_a_list_and_a_dict():
    return value(arguments.delay(1, "two", three=[3]))


@app.task(bind=True)
def arguments(self, *args, **kwargs):
    return [self.request.args, self.request.kwargs]


@shows("F072")
def origin_names_the_sending_process():
    return bool(re.fullmatch(rf"gen{os.getpid()}@.+", of("origin")["origin"]))


@shows("F073", "F092")
def retries_are_counted_and_the_rest_is_kept():
    result = try_again.apply_async(
        ("id", "retries", "headers", "root_id", "correlation_id", "timelimit"),
        headers={"tenant": "blue"},
        time_limit=60,
        soft_time_limit=50,
    )
    seen = value(result)
    return [
        seen.pop("id") == result.id,
        seen.pop("root_id") == result.id,
        seen.pop("correlation_id") == result.id,
        seen,
    ]


@shows("F073", "F074", "F079")
def the_first_attempt_in_a_worker():
    return of("retries", "is_eager", "called_directly")


@shows("F074", "F079")
def apply_is_eager_and_not_direct():
    return read.apply(("is_eager", "called_directly", "retries")).get()


@shows("F079", "F062")
def a_direct_call_is_neither_eager_nor_in_a_worker():
    return read("id", "is_eager", "called_directly", "retries", "args", "kwargs")


@shows("F075")
def eta_and_expires_are_texts_with_an_offset():
    seen = of("eta", "expires", countdown=0.01, expires=60)
    return {name: re.sub(r"\d", "0", re.sub(r"\.\d+", "", text)) for name, text in seen.items()}


@shows("F075")
def without_them_they_are_none():
    return of("eta", "expires")


@shows("F076")
def hostname_is_the_node_name_of_the_worker():
    return of("hostname")


@shows("F077")
def delivery_info_tells_where_it_came_from():
    return of("delivery_info", priority=3)


@shows("F077", "F074")
def delivery_info_when_eager():
    seen = read.apply(("delivery_info",)).get()["delivery_info"]
    return [name for name in ("is_eager", "exchange", "routing_key", "priority") if name in seen] + [seen["is_eager"]]


@shows("F078")
def reply_to_is_the_sending_threads_oid():
    return of("reply_to")["reply_to"] == app.thread_oid


@shows("F080", "X5")
def the_time_limit_is_hard_then_soft():
    return [of("timelimit", time_limit=60, soft_time_limit=50), value(limited.delay()), of("timelimit")]


@shows("F080")
def the_limits_have_names_of_their_own():
    return of("time_limit", "soft_time_limit", time_limit=60, soft_time_limit=50)


@shows("F081")
def callbacks_and_errbacks_are_signatures():
    seen = of("callbacks", "errbacks", link=keep.s(), link_error=keep.s())
    return {name: [each["task"] for each in found] for name, found in seen.items()}


@shows("F081")
def without_links_there_are_none():
    return of("callbacks", "errbacks")


@shows("F082")
def utc_is_a_word_of_the_old_protocol():
    return of("utc")


@shows("F083")
def headers_are_the_custom_ones_only():
    return [of("headers", headers={"tenant": "blue"}), of("headers")["headers"] or None]


@shows("F084")
def a_task_that_nobody_started_is_its_own_root():
    result = read.delay("root_id", "parent_id")
    seen = value(result)
    return [seen["root_id"] == result.id, seen["parent_id"]]


@shows("F084")
def children_inherit_root_and_parent():
    result = beget.delay()
    parent, child = value(result)
    seen = value(app.AsyncResult(child))
    return [seen["id"] == child, seen["parent_id"] == parent, seen["root_id"] == parent]


@shows("F084", "F107")
def root_and_parent_may_be_given():
    return of("root_id", "parent_id", root_id="the-root", parent_id="the-parent")


@shows("F085")
def the_rest_of_a_chain_is_reversed():
    result = chain(rest_of_chain.s(), keep.s(), keep.si("last"))()
    return value(result.parent.parent)


@app.task(bind=True)
def rest_of_chain(self):
    return [step["args"] for step in self.request.chain or []]


@shows("F085")
def outside_a_chain_there_is_none():
    return of("chain")["chain"] or None


@shows("F086")
def properties_hold_what_was_published():
    seen = of("properties", app_id="1234", priority=4)["properties"]
    return {name: seen.get(name) for name in ("app_id", "priority", "delivery_mode")}


@shows("F086", "F078")
def properties_hold_the_ids():
    seen = of("id", "reply_to", "properties")
    held = seen["properties"]
    return [held["correlation_id"] == seen["id"], held["reply_to"] == seen["reply_to"]]


@shows("F087")
def nothing_was_replaced():
    return of("replaced_task_nesting")


@shows("F088")
def ignore_result_is_the_calls_or_the_tasks():
    return of("ignore_result")


@shows("F089")
def unstamped_tasks_have_no_stamps():
    seen = of("stamped_headers", "stamps")
    return {name: found or None for name, found in seen.items()}


@shows("F090", "F041")
def children_are_the_results_it_spawned():
    return value(spawn.delay())


@app.task(bind=True)
def spawn(self):
    before = list(self.request.children or [])
    child = add.delay(1, 1)
    return [before, [each.id == child.id for each in self.request.children]]


@shows("F091")
def the_old_names_are_there():
    seen = of("logfile", "loglevel", "taskset", "shadow")
    return [sorted(seen), seen["taskset"], seen["shadow"]]


@shows("F092")
def execution_options_are_what_a_retry_is_made_of():
    wanted = {
        "task_id",
        "root_id",
        "parent_id",
        "group_id",
        "shadow",
        "chord",
        "chain",
        "link",
        "link_error",
        "expires",
        "soft_time_limit",
        "time_limit",
        "headers",
        "retries",
        "reply_to",
        "replaced_task_nesting",
        "origin",
    }
    return sorted(wanted & set(value(execution.delay())))


@shows("F063")
def a_direct_call_within_a_task_has_a_request_of_its_own():
    return value(outer.delay())


@app.task(bind=True)
def outer(self):
    inner = read("id", "called_directly")
    return [self.request.id is not None, self.request.called_directly, inner["called_directly"]]


@shows("F350")
def a_message_holds_the_name_and_no_code():
    return [outcome(app.send_task("request.add", (2, 3))), raised(read.apply_async, "not a list")]
