"""Does what the two terminals of main.py do: starts a worker, runs main.py, stops the worker."""

import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
WORKER = [sys.executable, "-m", "localq", "-A", str(HERE / "tasks.py"), "worker", "-c", "1", "-l", "WARNING"]

# No need to wait for the worker: calls are stored, and it runs them once it is there.
worker = subprocess.Popen(WORKER)
try:
    code = subprocess.call([sys.executable, HERE / "main.py"])
finally:
    worker.terminate()
    worker.wait()
sys.exit(code)
