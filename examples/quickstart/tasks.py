"""Two tasks. `localq -A tasks worker` runs them."""

from localq import LocalQ

app = LocalQ("tasks")


@app.task
def add(x, y):
    """Return the sum."""
    return x + y


@app.task
def divide(x, y):
    """Return the quotient; fails if y is 0."""
    return x / y
