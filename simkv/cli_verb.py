"""What every verb of the command line shares: its errors, its messages, ``--verbose`` and ``--debug``.

What it is: the class of all verbs, which turns whatever a verb raises into one line on stderr and an exit code.
What it is not: any verb.  Bad input ends with 2, a mistake of simkv's own with 1, Ctrl-C with 130, a closed pipe
silently with 141.
"""

import contextlib
import logging
import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterable, Iterator
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from simkv.errors import ConfigError, SimkvError

__all__ = ["Changes", "Debug", "JsonText", "Verb", "Verbose", "changes", "say", "terminated_as_interrupted"]

Verbose = Annotated[
    bool, typer.Option("--verbose", "-v", help="Tell more on stderr: notes of the trace, what is skipped or reused.")
]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
JsonText = Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")]
Changes = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Change a dotted key, e.g. tiers.dram.capacity='64 GiB'; repeatable."
    ),
]

_MOST_WARNINGS = 5


def say(text: str) -> None:
    """One line on stderr."""
    print(f"simkv: {text}", file=sys.stderr)


def changes(texts: Iterable[str] | None) -> dict[str, str]:
    """The values of ``--set`` by key.  Raises ConfigError for one without "="."""
    pairs = {}
    for text in texts or []:
        key, equals, value = text.partition("=")
        if not equals or not key.strip():
            raise ConfigError(f"--set {text!r}: write it as KEY=VALUE")
        pairs[key.strip()] = value.strip()
    return pairs


@contextlib.contextmanager
def terminated_as_interrupted() -> Iterator[None]:
    """Let SIGTERM do what Ctrl-C does, so that what is on the disk is removed; only the main thread can have that."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class Verb(TyperCommand):
    """A command whose errors are one line on stderr; the class of all verbs."""

    def invoke(self, ctx: Any) -> Any:
        """Run the verb; ends with an exit code when it fails."""
        try:
            with _messages(_is_given(ctx, "verbose")):
                outcome = super().invoke(ctx)
            sys.stdout.flush()
            return outcome
        except (typer.Exit, typer.Abort):
            raise
        except KeyboardInterrupt:
            say("interrupted")
            code = 130
        except BrokenPipeError:
            _close_stdout()
            code = 141
        except Exception as error:
            if _is_given(ctx, "debug"):
                traceback.print_exc(file=sys.stderr)
            line, code = _described(error)
            say(line)
        raise typer.Exit(code)


def _is_given(ctx: Any, flag: str) -> bool:
    """Whether the flag stands before the verb or after it."""
    while ctx is not None:
        if ctx.params.get(flag):
            return True
        ctx = ctx.parent
    return False


def _described(error: Exception) -> tuple[str, int]:
    text = " ".join(str(error).split())
    if isinstance(error, SimkvError):
        return f"error: {text}", 2
    if isinstance(error, OSError):
        place = f"{error.filename}: " if error.filename else ""
        return f"error: {place}{error.strerror or text}", 2
    return f"internal error: {type(error).__name__}: {text}; see where with --debug", 1


def _close_stdout() -> None:
    """Let nobody write to the closed pipe again, the interpreter at its end included."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@contextlib.contextmanager
def _messages(verbose: bool) -> Iterator[None]:
    """Show what simkv logs while a verb runs."""
    logger = logging.getLogger("simkv")
    handler, level = _Lines(verbose), logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO if verbose else logging.WARNING)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


class _Lines(logging.Handler):
    """Log records as lines on stderr; only the first few warnings unless verbose."""

    def __init__(self, verbose: bool) -> None:
        super().__init__()
        self._verbose = verbose
        self._warnings = 0

    def emit(self, record: logging.LogRecord) -> None:
        """Print one record, on the stderr of the moment: a progress bar may have put itself before it."""
        text = " ".join(record.getMessage().split())
        if record.levelno < logging.WARNING:
            say(text)
            return
        self._warnings += 1
        if self._verbose or self._warnings <= _MOST_WARNINGS:
            say(f"warning: {text}")
        elif self._warnings == _MOST_WARNINGS + 1:
            say("warning: more than these; see all with --verbose")
