"""The command line: `localq`.

    main.py     the command group, global options, errors
    worker.py   localq worker
    report.py   localq report
    task.py     localq task show, localq task retry
    graph.py    localq graph
    finder.py   which app is meant
    errors.py   how mistakes are said

Must not hold any behaviour that Python code cannot have: a command only calls the library.
"""
