"""The application object: what creating one does, its registry, names, the current app, laziness."""

import pickle
import threading

import celery
from celery import Celery, Task, current_app, shared_task
from celery.exceptions import NotRegistered
from observing import ordered, raised, shows

WORKER = None

app = Celery("application", broker="memory://", backend="cache+memory://")


def lone(**more):
    return Celery("lone", set_as_current=False, **more)


@app.task
def add(x, y):
    return x + y


@shows("F001")
def every_further_keyword_is_a_setting():
    made = lone(task_serializer="json", result_expires=5, timezone="Europe/Oslo")
    return [made.main, made.conf.task_serializer, made.conf.result_expires, made.conf.timezone]


@shows("F001", "N56")
def set_as_current_false_leaves_the_current_app():
    app.set_current()
    other = lone()
    return [celery.current_app.main, other.main]


@shows("F003")
def on_init_is_called_once_at_the_end():
    calls = []

    class Mine(Celery):
        def on_init(self):
            calls.append(self.main)

    Mine("with-init", set_as_current=False)
    return calls


@shows("F004", "F005")
def a_task_is_named_by_module_and_function():
    return [add.name, app.gen_task_name("f", "some.module"), app.gen_task_name("f", "__main__")]


@shows("F004")
def without_a_name_main_stays():
    return Celery(set_as_current=False).gen_task_name("f", "__main__")


@shows("F005")
def gen_task_name_may_be_overridden():
    class Mine(Celery):
        def gen_task_name(self, name, module):
            return super().gen_task_name(name, module.removesuffix(".tasks"))

    return Mine("mine", set_as_current=False).gen_task_name("f", "proj.tasks")


@shows("F006")
def an_unknown_task_is_not_registered():
    try:
        app.tasks["nope"]
    except KeyError as exc:
        return [isinstance(exc, NotRegistered), type(exc).__name__]
    return "found"


@shows("F006")
def the_registry_has_celerys_own_tasks():
    names = "accumulate backend_cleanup chain chord chord_unlock chunks group map starmap".split()
    return [name for name in names if f"celery.{name}" in app.tasks]


@shows("F006", "F350")
def the_registry_maps_names_to_tasks():
    return [app.tasks[add.name].name == add.name, add.name in app.tasks, "nope" in app.tasks, app.tasks[add.name](1, 2)]


@shows("F006")
def tasks_may_be_unregistered():
    other = lone()

    @other.task(name="gone")
    def gone():
        return None

    before = "gone" in other.tasks
    other.tasks.unregister("gone")
    return [before, "gone" in other.tasks, raised(other.tasks.unregister, "gone")]


@shows("F008", "N34")
def on_after_finalize_is_sent_once():
    calls = []
    other = lone()

    @other.on_after_finalize.connect
    def finalized(sender, **_):
        calls.append(sender is other)

    other.finalize()
    other.finalize()
    return [calls, other.finalized]


@shows("N34", "F010")
def on_after_configure_comes_with_the_first_look_at_the_settings():
    calls = []
    other = lone()

    def configured(sender, **named):
        calls.append(sender is other)

    other.on_after_configure.connect(configured)
    other.conf.task_serializer
    other.conf.task_serializer
    return calls


@shows("F009", "N43")
def the_current_app_is_the_one_that_was_chosen():
    first, second = Celery("first"), Celery("second")
    seen = [current_app.main]
    first.set_current()
    seen.append(current_app.main)
    second.set_current()
    return [*seen, current_app.main]


@shows("F009")
def the_current_app_is_per_thread_with_a_default():
    lone().set_current()
    app.set_default()
    seen = []
    thread = threading.Thread(target=lambda: seen.append(current_app.main))
    thread.start()
    thread.join()
    return [*seen, current_app.main]


@shows("F013")
def app_task_is_a_base_class_of_its_own():
    other = lone()
    return [issubclass(other.Task, Task), other.Task is not app.Task, other.Task.__name__, isinstance(add, Task)]


@shows("F013")
def app_task_may_be_replaced():
    class Mine(Task):
        mark = "mine"

    other = lone(task_cls=Mine)

    @other.task(name="marked")
    def marked():
        return None

    third = lone()
    third.Task = Mine

    @third.task(name="marked")
    def too():
        return None

    return [marked.mark, isinstance(marked, Mine), too.mark, isinstance(too, Mine)]


@shows("F014")
def result_classes_belong_to_their_app():
    results = [app.AsyncResult("id"), app.GroupResult("id", []), app.ResultSet([])]
    return [[result.app is app for result in results], results[0].id, app.AsyncResult("id") == app.AsyncResult("id")]


@shows("F016", "N33")
def signatures_belong_to_their_app():
    made = app.signature("some.task", args=(1, 2), kwargs={"z": 3}, countdown=5)
    return [made.app is app, made.task, list(made.args), made.kwargs, made.options]


@shows("F017", "N33")
def a_class_may_be_registered():
    other = lone()

    class Double(Task):
        name = "double"

        def run(self, x):
            return 2 * x

    task = other.register_task(Double())
    return [task.name, other.tasks["double"](4), task.app is other, type(other.register_task(Triple)).__name__]


class Triple(Task):
    name = "triple"

    def run(self, x):
        return 3 * x


@shows("F019", "F338")
def now_is_aware_and_in_the_apps_zone():
    oslo = lone(timezone="Europe/Oslo")
    return [str(lone().timezone), lone().now().tzinfo is not None, str(oslo.timezone), oslo.now().tzinfo is not None]


@shows("F019")
def utc_is_on_unless_turned_off():
    return [lone().uses_utc_timezone(), lone(enable_utc=False).uses_utc_timezone()]


@shows("F020", "N43")
def there_is_no_current_task_outside_one():
    return [app.current_task is None, app.current_worker_task is None, not celery.current_task]


@shows("F020")
def the_current_task_is_the_innermost():
    @app.task(name="inner")
    def inner():
        return app.current_task.name

    @app.task(name="outer")
    def outer():
        return [app.current_task.name, inner(), app.current_task.name, app.current_worker_task is None]

    return outer()


@shows("F021")
def an_oid_stays():
    seen = []
    thread = threading.Thread(target=lambda: seen.append(app.thread_oid))
    thread.start()
    thread.join()
    return [app.oid == app.oid, app.thread_oid == app.thread_oid, seen[0] != app.thread_oid]


@shows("F022")
def an_app_is_a_context_manager():
    with Celery("with", set_as_current=False) as made:
        return made.main


@shows("F023")
def worker_main_wants_the_word_worker():
    return raised(app.worker_main, ["status"])


@shows("F024")
def a_bug_report_names_software_and_settings():
    text = lone(security_key="secret-word").bugreport()
    return ["software ->" in text, "platform ->" in text, "secret-word" in text]


@shows("F026")
def a_shared_task_follows_the_current_app():
    @shared_task(name="shared.add")
    def shared(x, y):
        return x + y

    first, second = Celery("shares"), Celery("shares too")
    second.set_current()
    seen = [shared.app.main]
    first.set_current()
    return [*seen, shared.app.main, "shared.add" in first.tasks, "shared.add" in second.tasks, shared(1, 2)]


@shows("F026")
def an_app_made_later_has_shared_tasks_too():
    @shared_task(name="shared.later")
    def later():
        return "later"

    return [lone().tasks["shared.later"]()]


@shows("F027")
def autodiscover_finds_modules_and_skips_what_is_not_there():
    other = lone()
    other.autodiscover_tasks(["parcel"], force=True)
    other.autodiscover_tasks(["parcel"], related_name="nothing_of_that_name", force=True)
    missing = raised(other.autodiscover_tasks, ["no_such_package"], force=True)
    app.set_current()
    return ["parcel.tasks.packed" in other.tasks, missing]


@shows("F028")
def its_parts_exist():
    return [name for name in ("log", "control", "events", "amqp", "loader", "backend", "pool") if hasattr(app, name)]


@shows("F029")
def an_app_survives_pickling():
    made = Celery("pickled", set_as_current=False, task_serializer="json", result_expires=7)
    copy = pickle.loads(pickle.dumps(made))
    return [copy.main, copy.conf.task_serializer, copy.conf.result_expires]


@shows("F007")
def without_autofinalize_using_a_task_is_an_error():
    other = lone(autofinalize=False)

    @other.task(name="early")
    def early():
        return None

    return raised(lambda: other.tasks)


@shows("N33")
def connections_are_context_managers():
    with app.connection_or_acquire() as connection, app.producer_or_acquire() as producer:
        return [connection is not None, producer is not None]


@shows("N33", "F126")
def queues_may_be_selected():
    other = lone(task_create_missing_queues=True)
    other.select_queues(["images", "video"])
    return ordered(other.amqp.queues.consume_from)


@shows("N43")
def the_package_exports():
    names = (
        "Celery",
        "Signature",
        "Task",
        "bugreport",
        "chain",
        "chord",
        "chunks",
        "current_app",
        "current_task",
        "group",
        "maybe_signature",
        "shared_task",
        "signature",
        "subtask",
        "uuid",
        "xmap",
        "xstarmap",
        "VERSION",
        "__version__",
    )
    return [name for name in names if hasattr(celery, name)]


@shows("N50")
def classes_take_types_in_brackets():
    return [bool(kind[int]) for kind in (celery.Celery, celery.Task, celery.Signature)]
