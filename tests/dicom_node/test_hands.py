import threading

from dicom_node.hands import Hands

SECONDS = 20.0


def test_what_waits_does_not_hold_up_what_comes_after_it():
    hands, gate, done = Hands("test"), threading.Event(), threading.Event()
    hands.do(gate.wait)
    hands.do(done.set)

    assert done.wait(SECONDS)
    gate.set()


def test_an_idle_thread_is_used_again():
    hands, threads = Hands("test"), []
    for _ in range(20):
        done = threading.Event()

        def work(done: threading.Event = done) -> None:
            threads.append(threading.get_ident())
            done.set()

        hands.do(work)
        assert done.wait(SECONDS)

    assert len(set(threads)) < 20
