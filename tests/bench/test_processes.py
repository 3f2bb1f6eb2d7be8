"""What a run takes is measured in turns, in this process and in others that stand still meanwhile."""

import resource
from pathlib import Path

import pytest
import torch

from bench.processes import ProcessOptions, Worker, apart, interleaved, measured, peak_bytes
from common.memory import peak_memory

QUIET = ProcessOptions(quiet=True)
needs_linux = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux")


def test_runs_take_turns_and_the_first_of_each_is_not_counted():
    order = []
    costs = interleaved({name: lambda name=name: order.append(name) for name in "ab"}, 2)
    assert "".join(order) == "ababab"
    assert {name: len(taken) for name, taken in costs.items()} == {"a": 2, "b": 2}


def test_a_run_has_its_result_and_what_it_takes():
    result, cost = measured(lambda: 7)
    assert result == 7
    assert cost.wall >= 0
    assert cost.cpu >= 0


@needs_linux
def test_the_peak_sees_memory_that_was_given_back():
    before, extra = peak_bytes(), 1 << 27
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    # Other tests of this process may have had more memory than it has now: reach beyond their peak.
    block = torch.ones(before - pages * resource.getpagesize() + extra, dtype=torch.uint8)
    del block
    assert peak_bytes() - before > extra // 2


def test_what_a_process_of_its_own_gives_comes_back():
    found = apart(peak_memory, options=QUIET)
    assert found["ram"] > 0
    assert found["gpu"] is None


def test_what_can_be_run_is_run_when_it_is_asked():
    with Worker(_counter, 5, options=QUIET) as worker:
        assert worker.result is None
        assert [worker.run()[1] for _ in range(2)] == [6, 7]
        assert worker.run(settle=2)[1] == 10


def test_a_process_that_dies_says_why():
    with pytest.raises(ChildProcessError, match=r"process of open.* ended with code 1: .*FileNotFoundError"):
        apart(open, "gone.txt", options=QUIET)


def _counter(start):
    count = iter(range(start + 1, start + 100))
    return lambda: next(count)
