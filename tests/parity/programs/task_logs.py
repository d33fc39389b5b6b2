"""What a worker logs about tasks, and what tasks log themselves."""

import logging

from celery import Celery, Task
from celery.signals import after_setup_logger, after_setup_task_logger
from celery.utils.log import get_logger, get_task_logger
from observing import logged, note, noted, outcome, shows, value

app = Celery("task_logs")
logger = get_task_logger(__name__)
NAME = r"INFO/ForkPoolWorker-\d+\] "


@app.task(bind=True)
def speak(self, words):
    logger.info("said: %s", words)
    return self.request.id


@app.task
def add(x, y):
    return x + y


@app.task(bind=True, max_retries=1)
def again(self):
    if not self.request.retries:
        raise self.retry(countdown=0.01, exc=ValueError("not yet"))
    return "done"


@app.task
def boom():
    raise ValueError("it fails")


@app.task(resultrepr_maxsize=30)
def long_result():
    return list(range(1000))


class Shadowed(Task):
    def shadow_name(self, args, kwargs, options):
        return "shadow.name"


@app.task(base=Shadowed)
def shadowed():
    return 1


@after_setup_logger.connect
def logger_is_up(logger=None, loglevel=None, logfile=None, format=None, colorize=None, **_):
    note("setup", "logger", logger is logging.getLogger() or logger.name, loglevel)


@after_setup_task_logger.connect
def task_logger_is_up(logger=None, loglevel=None, logfile=None, format=None, colorize=None, **_):
    note("setup", "task", logger.name, loglevel)


@shows("F333")
def the_loggers_are_announced():
    value(add.delay(1, 1))
    seen = noted(2, "setup")
    return sorted({(kind, level) for _, kind, _, level in seen})


@shows("F333")
def the_task_logger_has_a_name():
    return get_task_logger("some.module").name


@shows("N58")
def the_helpers_for_loggers():
    return [type(get_logger("a.b")).__name__, get_logger("a.b").name, get_task_logger("a.b").parent.name]


@shows("N58")
def a_task_logger_tells_the_task():
    number = value(speak.delay("hello"))
    return logged(rf"{NAME}task_logs\.speak\[{number}\]: said: (.*)$")


@shows("F108")
def a_success_is_a_line():
    value(add.delay(20, 22))
    return len(logged(rf"{NAME}Task task_logs\.add\[[^]]+\] succeeded in \d+\.\d+\S*s: 42$"))


@shows("F331")
def a_received_task_is_a_line():
    value(add.delay(20, 23))
    return len(logged(r"INFO/MainProcess\] Task task_logs\.add\[[^]]+\] received$")) > 0


@shows("F331")
def a_retry_is_a_line():
    value(again.delay())
    return logged(r"Task task_logs\.again\[[^]]+\] (retry: Retry in .*)$")[:1]


@shows("F331")
def a_failure_is_a_line_and_a_traceback():
    outcome(boom.delay())
    return [
        logged(r"ERROR/ForkPoolWorker-\d+\] Task task_logs\.boom\[[^]]+\] (raised unexpected: .*)$"),
        logged(r"^(Traceback.*)$")[:1],
    ]


@shows("F052")
def a_long_result_is_cut():
    value(long_result.delay())
    (shown,) = logged(r"Task task_logs\.long_result\[[^]]+\] succeeded in [^:]+: (.*)$")
    return [len(shown) < 200, shown[:10]]


@shows("F054")
def a_shadow_is_what_is_logged():
    value(shadowed.delay())
    return len(logged(r"Task shadow\.name\[[^]]+\] succeeded"))
