"""What is printed."""

import sys
import threading

lock = threading.Lock()
BOLD, PLAIN = ("\x1b[1m", "\x1b[0m") if sys.stdout.isatty() else ("", "")


class Failed(Exception):
    """Something did not happen as told. The text is for people."""


def say(text=""):
    with lock:
        print(text, flush=True)


def step(title):
    step.number = getattr(step, "number", 0) + 1
    say(f"\n{BOLD}== {step.number}. {title}{PLAIN}")


def block(text):
    for line in text.rstrip().splitlines():
        say(f"    {line}".rstrip())


def table(rows):
    widths = [max(len(str(row[i])) for row in rows) for i in range(len(rows[0]))]
    block("\n".join("   ".join(str(cell).ljust(width) for cell, width in zip(row, widths)) for row in rows))


def check(truth, text):
    """A promise, and whether it was kept."""
    if not truth:
        raise Failed(f"expected: {text}")
    say(f"    ok  {text}")
