"""The lock: taken again by its holder, passed on in order, given back after errors and interrupts."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from pyrobnn.core.exclusive import Exclusive, in_one_thread


def in_threads(*functions: Any) -> list[threading.Thread]:
    threads = [threading.Thread(target=function) for function in functions]
    for thread in threads:
        thread.start()
    return threads


def wait_until(lock: Exclusive, waiting: int) -> None:
    while len(lock._waiting) < waiting:
        threading.Event().wait(0.001)


def test_its_holder_may_take_it_again() -> None:
    lock = Exclusive()
    entered = threading.Event()
    with lock:
        with lock:
            (thread,) = in_threads(lambda: (lock.acquire(), entered.set(), lock.release()))
            wait_until(lock, 1)
        assert not entered.is_set()  # the outer block still holds it
    thread.join()
    assert entered.is_set()


def test_it_is_passed_on_in_the_order_of_requests() -> None:
    lock = Exclusive()
    order: list[Any] = []

    def turn(index: int) -> None:
        with lock:
            order.append(index)

    threads = []
    with lock:
        for index in range(5):
            threads += in_threads(lambda index=index: turn(index))
            wait_until(lock, index + 1)
    with lock:  # its last holder goes to the end of the queue
        order.append("holder")
    for thread in threads:
        thread.join()
    assert order == [0, 1, 2, 3, 4, "holder"]


def test_one_thread_at_a_time() -> None:
    lock = Exclusive()
    count, inside, seen = 0, 0, []

    def work() -> None:
        nonlocal count, inside
        for _ in range(300):
            with lock:
                inside += 1
                seen.append(inside)
                count, inside = count + 1, inside - 1

    for thread in in_threads(*[work] * 4):
        thread.join()
    assert count == 1200 and set(seen) == {1}


def test_an_error_gives_it_back() -> None:
    lock = Exclusive()
    with pytest.raises(ZeroDivisionError), lock:
        raise ZeroDivisionError
    (thread,) = in_threads(lambda: (lock.acquire(), lock.release()))
    thread.join(timeout=10)
    assert not thread.is_alive()
    with pytest.raises(RuntimeError, match="held by another thread, or by none"):
        lock.release()


@pytest.mark.parametrize("passed_on", [False, True], ids=["while it waits", "when its turn has come"])
def test_an_interrupted_request_leaves_the_queue(passed_on: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    lock = Exclusive()

    class Interrupted:
        def acquire(self) -> None:
            if passed_on:
                lock._waiting.remove(self)  # type: ignore[arg-type]
            raise KeyboardInterrupt

    turn: Any = Interrupted()
    lock._waiting.append(turn)
    lock._is_taken = True
    with pytest.raises(KeyboardInterrupt):
        lock._wait(turn)
    assert not lock._waiting and lock._is_taken == (not passed_on)


def test_a_module_in_use_elsewhere_is_refused() -> None:
    module, other = object(), object()
    found: list[str] = []

    def use(**modules: Any) -> None:
        try:
            with in_one_thread(**modules):
                found.append("used")
        except RuntimeError as error:
            found.append(str(error))

    with in_one_thread(model=module), in_one_thread(model=module):
        for modules in ({"guide": other, "model": module}, {"guide": other}):
            in_threads(lambda modules=modules: use(**modules))[0].join()
    in_threads(lambda: use(model=module))[0].join()
    assert found[0].startswith("model: another thread is training or sampling the same object")
    assert found[1:] == ["used", "used"]
