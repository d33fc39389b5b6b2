"""Fetches fifty pages at once, from a slow server of its own on this machine.

In one terminal:   localq -A tasks worker
In another:        python main.py
"""

import asyncio
import time

from tasks import count, fetch, fetch_in_time

from localq import chord
from localq.exceptions import SoftTimeLimitExceeded

#: Seconds the server thinks about each page.
SLOW_S = 0.2


async def answer(reader, writer):
    """Serve one page: /missing/... is not there, /never comes too late."""
    path = (await reader.readuntil(b"\r\n\r\n")).split()[1].decode()
    await asyncio.sleep(10 if path == "/never" else SLOW_S)
    status = "404 Not Found" if path.startswith("/missing") else "200 OK"
    writer.write(f"HTTP/1.0 {status}\r\n\r\n{'x' * len(path)}".encode())
    await writer.drain()
    writer.close()


async def main():
    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    here = "http://{}:{}".format(*server.sockets[0].getsockname())

    # adelay() and aget() do what delay() and get() do, without blocking this loop, in which the server runs.
    first = await fetch.adelay(f"{here}/pages/first")
    print("one page:", await first.aget(timeout=30))

    started = time.monotonic()
    results = [await fetch.adelay(f"{here}/pages/{number:02}") for number in range(50)]
    pages = await asyncio.gather(*(result.aget(timeout=30) for result in results))
    took = time.monotonic() - started
    print("fifty pages:", len(pages), "with", sum(length for _, length in pages), "bytes")
    print("one after another they take", 50 * SLOW_S, "s; at once,", "less" if took < 50 * SLOW_S / 2 else "no less")

    # Coroutines and plain tasks are parts of the same workflows.
    urls = [f"{here}/pages/{number}" for number in range(5)] + [f"{here}/missing/{number}" for number in range(2)]
    counted = await chord(map(fetch.s, urls), count.s()).adelay()
    print("by status:", await counted.aget(timeout=30))

    late = await fetch_in_time.adelay(f"{here}/never")
    try:
        await late.aget(timeout=30)
    except SoftTimeLimitExceeded:
        print("too slow: given up, state", late.state)
    server.close()


asyncio.run(main())
