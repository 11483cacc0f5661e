"""Who runs a trial must keep saying so."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from d2ppo_ros.executor.lease import Lease

TIMES = st.integers(0, 2_000)


@given(st.integers(1, 1_000), st.lists(st.tuples(TIMES, st.sampled_from(["this", "that"]))), TIMES)
def test_it_is_over_when_this_trial_has_been_silent_for_longer(length, words, look):
    lease, words = Lease(length), sorted(words, key=lambda word: word[0])
    lease.begin("this", 0)
    for at, trial in words:
        lease.renew(trial, at)
    now = look + max((at for at, _ in words), default=0)
    last = max((at for at, trial in words if trial == "this"), default=0)
    assert lease.over(now) == (now - last > length)


def test_a_new_trial_begins_anew_and_a_length_of_0_never_ends():
    lease, none = Lease(10), Lease(0)
    for each in (lease, none):
        each.begin("this", 0)
        each.begin("that", 100)
    assert not lease.over(110) and lease.over(111) and not none.over(10**12)
