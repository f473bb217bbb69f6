import concurrent.futures
import gc
import subprocess
import sys
import threading
import weakref

import pytest

import maas
from maas.executors.lanes import Lane

PATIENCE = 30.0


def threads_of(name: str) -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == name]


def test_work_begins_in_the_order_of_its_arrival():
    """On one thread, one thing is done after the other."""
    lane = Lane(1, "ordered")
    done: list[int] = []
    futures = [lane.ask(lambda number=number: done.append(number)) for number in range(200)]
    concurrent.futures.wait(futures, PATIENCE)
    assert done == list(range(200))


def test_as_much_is_done_at_once_as_the_lane_is_wide():
    """A lane of three does three things at once, the fourth afterwards, on three threads."""
    lane = Lane(3, "wide")
    together = threading.Barrier(4)
    futures = [lane.ask(lambda: together.wait(PATIENCE)) for _ in range(3)]
    fourth = lane.ask(lambda: "after")
    assert len(threads_of("wide")) == 3
    assert not fourth.done()
    together.wait(PATIENCE)
    assert fourth.result(PATIENCE) == "after"
    assert sorted(future.result(PATIENCE) for future in futures) != []


def test_a_resting_thread_is_used_before_another_begins():
    """Work that comes one at a time is done by one thread."""
    lane = Lane(8, "frugal")
    names = {lane.ask(threading.get_ident).result(PATIENCE) for _ in range(100)}
    assert len(names) <= 2  # a future is done a moment before its thread rests


def test_a_thread_without_work_ends():
    """Idle threads end by themselves, and the next work has one again."""
    lane = Lane(2, "brief", idle=0.01)
    first = lane.ask(threading.current_thread).result(PATIENCE)
    first.join(PATIENCE)
    assert not first.is_alive()
    second = lane.ask(threading.current_thread).result(PATIENCE)
    assert second is not first


def test_what_a_call_held_is_let_go_while_the_thread_rests():
    """A resting thread keeps no argument of the last call alive."""

    class Argument:
        pass

    lane = Lane(1, "forgetful", idle=PATIENCE)
    argument = Argument()
    gone = weakref.ref(argument)
    lane.ask(lambda argument=argument: None).result(PATIENCE)
    lane.ask(lambda: None).result(PATIENCE)
    del argument
    gc.collect()
    assert gone() is None
    lane.close()


def test_closing_gives_up_what_has_not_begun():
    """What runs ends as it would have; what waits is told; threads end; a last word is heard."""
    lane = Lane(1, "closing")
    begun, go = threading.Event(), threading.Event()

    def work() -> str:
        begun.set()
        go.wait(PATIENCE)
        return "done"

    running, waiting = lane.ask(work), lane.ask(work)
    begun.wait(PATIENCE)
    lane.close()
    with pytest.raises(maas.Cancelled, match="closed before this call began"):
        waiting.result(PATIENCE)
    last = lane.ask(lambda: "last")
    go.set()
    assert (running.result(PATIENCE), last.result(PATIENCE)) == ("done", "last")
    for thread in threads_of("closing"):
        thread.join(PATIENCE)
    assert threads_of("closing") == []


def test_an_error_is_the_askers():
    """What the work raises reaches the one who asked, and the thread goes on."""
    lane = Lane(1, "sturdy")
    with pytest.raises(ZeroDivisionError):
        lane.ask(lambda: 1 // 0).result(PATIENCE)
    with pytest.raises(SystemExit):
        lane.ask(sys.exit).result(PATIENCE)
    assert lane.ask(lambda: 1).result(PATIENCE) == 1


def test_models_that_are_held_keep_no_threads():
    """Models that were asked once, and are neither closed nor collected, leave no thread behind."""
    models = [maas.Model(abs, name=f"once-{number}") for number in range(20)]
    assert [model.submit(-1).result(PATIENCE) for model in models] == [1] * 20
    for thread in threading.enumerate():
        if thread.name.startswith("maas-once-"):
            thread.join(PATIENCE)
            assert not thread.is_alive()


AT_EXIT = """
import maas, threading

begun, go = threading.Event(), threading.Event()

def speak(word: str) -> None:
    begun.set()
    go.wait(30)
    print(word, flush=True)

class Speaker:
    @maas.method
    def speak(self, word: str) -> None:
        speak(word)

speaker = maas.Model(Speaker())
jobs = [speaker.speak.submit(word) for word in ("one", "two")]
begun.wait(30)
threading.Timer(0.05, go.set).start()
"""


def test_what_was_submitted_is_done_before_the_process_ends():
    """A program that ends without waiting for its jobs waits for them at its end."""
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", AT_EXIT],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert (run.returncode, run.stdout, run.stderr) == (0, "one\ntwo\n", "")


FORKED = """
import maas, os, sys, warnings

warnings.simplefilter("ignore", DeprecationWarning)  # of forking with threads
model = maas.Model(abs)
assert model.submit(-1).result(30) == 1
child = os.fork()
if not child:
    mine = maas.Model(abs)
    job = mine.submit(-2)
    sys.exit(0 if job.result(30) == 2 else 3)
_, status = os.waitpid(child, 0)
print(os.waitstatus_to_exitcode(status))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="this platform has no fork")
def test_a_forked_child_ends_without_its_parents_threads():
    """A child has lanes of its own, and waits at its end for no thread that stayed behind."""
    run = subprocess.run(
        [sys.executable, "-c", FORKED], capture_output=True, text=True, timeout=60, check=False
    )
    assert (run.returncode, run.stdout) == (0, "0\n"), run.stderr


ENDING_AT_EXIT = """
import atexit, threading, time

@atexit.register
def tell() -> None:
    print("still there" if thread.is_alive() else "gone")

from maas.executors.lanes import Lane

class Slow:
    def __del__(self) -> None:
        time.sleep(0.3)

def work() -> threading.Thread:
    local.slow = Slow()
    return threading.current_thread()

local = threading.local()
lane = Lane(1, "ending")
thread = lane.ask(work).result(30)
lane.close()
while lane._threads:
    time.sleep(0.001)
"""


def test_a_thread_that_is_about_to_end_is_gone_before_python_is():
    """A thread that has left its lane, but not the process, is waited for at the end."""
    done = subprocess.run(
        [sys.executable, "-c", ENDING_AT_EXIT],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert (done.stdout, done.stderr, done.returncode) == ("gone\n", "", 0)
