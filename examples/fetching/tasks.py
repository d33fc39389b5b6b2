"""A coroutine task beside a plain one. `localq -A tasks worker` runs both."""

import asyncio
import urllib.parse

from localq import LocalQ

app = LocalQ("fetching")


@app.task
async def fetch(url):
    """Return the status of a page and its length; fifty of these wait at the same time in one process."""
    where = urllib.parse.urlsplit(url)
    reader, writer = await asyncio.open_connection(where.hostname, where.port)
    try:
        writer.write(f"GET {where.path} HTTP/1.0\r\nHost: {where.hostname}\r\n\r\n".encode())
        await writer.drain()
        answer = await reader.read()
    finally:
        writer.close()
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(head.split()[1]), len(body)


@app.task(soft_time_limit=0.5)
async def fetch_in_time(url):
    """The same, but given up after half a second."""
    return await fetch(url)


@app.task
def count(pages):
    """Count the pages by their status; a plain task, which gets the results of all the others."""
    found = {}
    for status, length in pages:
        number, total = found.get(str(status), (0, 0))
        found[str(status)] = (number + 1, total + length)
    return found
