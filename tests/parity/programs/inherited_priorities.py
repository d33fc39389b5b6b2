"""task_inherit_parent_priority, and a default of one's own."""

from celery import Celery, chain
from observing import shows, value

app = Celery("inherited_priorities", task_inherit_parent_priority=True)


@app.task(bind=True)
def read(self, *_):
    return self.request.delivery_info["priority"]


@app.task
def beget(**options):
    return read.apply_async(**options).id


@shows("N52", "F132")
def the_default_is_a_setting():
    other = Celery("with a default", set_as_current=False, task_default_priority=4)

    @other.task(name=read.name)
    def sent():
        return None

    return [value(sent.delay()), value(sent.apply_async(priority=2))]


@shows("N52", "F132")
def a_child_inherits():
    return value(app.AsyncResult(value(beget.apply_async(priority=8))))


@shows("N52", "F132")
def unless_it_says_otherwise():
    return value(app.AsyncResult(value(beget.apply_async(kwargs={"priority": 2}, priority=8))))


@shows("N52", "F132")
def the_rest_of_a_chain_inherits():
    return value(chain(read.s(), read.s()).apply_async(priority=7))
