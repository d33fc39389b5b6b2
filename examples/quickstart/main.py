"""Calls tasks and reads their results.

In one terminal:   localq -A tasks worker
In another:        python main.py
"""

from tasks import add, divide

# delay() stores the call and returns at once; a worker runs it.
result = add.delay(4, 4)
print("4 + 4 =", result.get(timeout=30))
print("ready:", result.ready())
print("state:", result.state)

# Without propagate=False, get() would raise the task's exception here.
failed = divide.delay(1, 0)
error = failed.get(timeout=30, propagate=False)
print("1 / 0 raised", type(error).__name__)
print("traceback ends:", failed.traceback.splitlines()[-1])

# A chain: each step gets the result of the one before it.
print("(2 + 3 + 5) / 4 =", (add.s(2, 3) | add.s(5) | divide.s(4)).delay().get(timeout=30))
