"""Benchmarks: localq and its peers, measured in the same run on the same machine.

One file, one question; `python -m benchmarks` asks them. Nothing here is imported by localq or by its tests.

    __main__   the run: questions x runs x peers, interleaved             (python -m benchmarks --help)
    report     medians, ratios, the Markdown table, the JSON file
    stage      one peer set up in a fresh directory, with its worker and its clients; gone when the `with` ends
    process    starting, watching and ending process trees
    client     a process that plays the user of a peer: sends tasks, reads results, takes the time
    counter    what completed and when, counted inside the task, the same way for every tool
    peers/     what to start for each tool, and its tasks
"""
