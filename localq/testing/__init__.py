"""What tests of tasks need: workers that start and stop inside a test, a clock to set, a storage contract.

    worker.py    start_worker: a real worker for the duration of a block
    clock.py     FakeClock: time that passes when the test says so
    contract/    StorageContract: `localq.storage.base` as tests

Must not be imported by the library itself.
"""
