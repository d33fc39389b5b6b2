"""`python -m localq` is `localq`."""

from localq.cli.main import run

if __name__ == "__main__":
    run()
