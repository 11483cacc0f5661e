"""A comparison as pure logic: its order, its file after a kill at any byte, what it hides, and what comes out."""

from __future__ import annotations

import json
import random
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from d2ppo_core import cli
from d2ppo_core.errors import UserError
from d2ppo_core.statistics import paired_difference, wilson
from d2ppo_ros.trials import results
from d2ppo_ros.trials.journal import NAME, Journal, read
from d2ppo_ros.trials.policies import HIDDEN, Curtain, names
from d2ppo_ros.trials.session import INTERRUPTED, Session, Trial, draw
from trials_desk import NAMES, plan, policies

SEEDS = st.integers(0, 2**62)


def session_in(folder: Path, episodes: int = 3, count: int = 3, seed: int = 7, blind: bool = True) -> Session:
    journal = Journal(folder / NAME, patience=0.0)
    return Session(journal, None if journal.events else plan(policies(folder, NAMES[:count]), episodes, seed, blind))


def close(session: Session) -> None:
    session._journal.close()


def step(session: Session, chance: random.Random, void: float) -> Trial:
    """One trial with a random outcome."""
    session.set_up()
    session.draw()
    session.end({"reason": "time", "success": False, "record": ""})
    if chance.random() < void:
        return session.judge("void", "the cube fell", "")
    return session.judge(chance.choice(["success", "failure"]), "", "a note, ä\n\"x\"")


# --- the order --------------------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(SEEDS, st.integers(1, 5), st.integers(1, 3), st.floats(0.0, 0.6))
def test_every_start_state_is_run_with_every_policy_once(seed: int, episodes: int, count: int, void: float) -> None:
    with TemporaryDirectory() as folder:
        session, chance, steps = session_in(Path(folder), episodes, count, seed), random.Random(seed), 0
        starts = []
        while not session.complete:
            starts.append(step(session, chance, void).start)
            steps += 1
            assert steps < 1000
        counted = [(trial.start, trial.policy) for trial in session.trials if trial.counts]
        assert sorted(counted) == [(start, policy) for start in range(episodes) for policy in range(count)]
        assert starts == sorted(starts)  # a start state is set up again and again before the next one comes
        assert len({trial.name for trial in session.trials}) == steps
        assert session.done == session.total == episodes * count
        with pytest.raises(UserError, match="mistake of the program"):
            session.draw()
        close(session)


def test_the_draw_is_fair_and_follows_from_the_seed() -> None:
    first = np.array([draw(seed, 3, 0, [0, 1, 2]) for seed in range(3000)])
    assert np.abs(np.bincount(first) / len(first) - 1 / 3).max() < 0.03  # 3.5 standard deviations
    orders = [tuple(_order(seed)) for seed in range(6000)]
    _, counts = np.unique(orders, axis=0, return_counts=True)
    assert len(counts) == 6
    assert counts.min() > 870  # of 1000
    assert draw(5, 1, 2, [2, 0]) == draw(5, 1, 2, [0, 2])
    # The order of a recorded session must never change with a new version of this program.
    assert [_order(seed) for seed in (1, 2, 3)] == [[0, 1, 2], [1, 0, 2], [0, 1, 2]]


def _order(seed: int) -> list[int]:
    left, order = [0, 1, 2], []
    while left:
        order.append(draw(seed, 0, len(order), left))
        left.remove(order[-1])
    return order


def test_a_void_trial_goes_back_and_the_next_draw_is_free_again(tmp_path: Path) -> None:
    seen = set()
    for seed in range(20):
        session = session_in(tmp_path / str(seed), 1, 2, seed)
        first = session.draw()
        session.judge("void", "no power")
        seen.add(first.policy == session.draw().policy)
        close(session)
    assert seen == {True, False}  # who sees a void trial cannot tell which policy comes next


# --- the file ---------------------------------------------------------------------------------------------------------


def story(session: Session) -> list[tuple]:
    return [(t.name, t.start, t.policy, t.outcome, t.reason, t.notes, bool(t.ended)) for t in session.trials]


@settings(max_examples=12, deadline=None)
@given(SEEDS, st.integers(0, 2**31), st.lists(st.floats(0.0, 1.0), min_size=12, max_size=12))
def test_cut_at_any_byte_it_goes_on_and_loses_at_most_what_was_being_written(
    seed: int, luck: int, places: list[float]
) -> None:
    with TemporaryDirectory() as folder:
        path, chance = Path(folder) / NAME, random.Random(luck)
        session = session_in(Path(folder), 2, 2, seed)
        lengths, stories = [path.stat().st_size], [story(session)]
        append = session._journal.append

        def noted(*event: object, **about: object) -> object:
            made = append(*event, **about)
            lengths.append(path.stat().st_size)
            return made

        session._journal.append = noted  # type: ignore[method-assign]
        take = session._take

        def told(event: dict) -> None:
            take(event)
            stories.append(story(session))

        session._take = told  # type: ignore[method-assign]
        while not session.complete:
            step(session, chance, 0.3)
        close(session)
        whole = path.read_bytes()
        for cut in {round(lengths[0] + place * (len(whole) - lengths[0])) for place in places}:
            path.write_bytes(whole[:cut])
            again = session_in(Path(folder))
            written = sum(length <= cut for length in lengths) - 1
            assert story(again) == stories[written]
            was = again.pending
            assert again.interrupted() == (was is not None and was.ended is None)
            while not again.complete:
                if again.pending:
                    again.judge("failure")
                else:
                    step(again, chance, 0.2)
            assert again.done == again.total
            close(again)


def test_a_trial_that_was_under_way_is_void_and_one_that_had_ended_waits_for_its_outcome(tmp_path: Path) -> None:
    session = session_in(tmp_path)
    session.draw()
    close(session)
    session = session_in(tmp_path)
    assert session.interrupted()
    assert (session.trials[0].outcome, session.trials[0].reason) == ("void", INTERRUPTED)
    trial = session.draw()
    session.end({"reason": "time", "record": "r"})
    close(session)
    session = session_in(tmp_path)
    assert not session.interrupted()
    assert (session.pending.name, session.pending.ended) == (trial.name, {"reason": "time", "record": "r"})
    close(session)


def test_an_outcome_can_be_corrected(tmp_path: Path) -> None:
    session = session_in(tmp_path, 1, 1)
    trial = session.draw()
    session.judge("success", notes="first")
    assert session.complete
    session.correct()
    assert not session.complete
    assert session.pending is trial
    session.judge("void", "it was the wrong object")
    assert session.left(0) == [0]
    close(session)
    again = session_in(tmp_path)
    assert (again.trials[0].outcome, again.trials[0].reason) == ("void", "it was the wrong object")
    close(again)


@pytest.mark.parametrize(
    ("line", "change", "said"),
    [
        (0, {"format": 2}, "begins with no session of ours"),
        (0, {"seed": 8}, "the draw is not that of the session's seed"),
        (1, {"ticket": "0" * 16}, "the draw is not that of the session's seed"),
        (1, {"start": 2}, "this start state was not due"),
        (2, {"outcome": "great"}, "'great' is no outcome"),
        (2, {"trial": "other"}, "another trial is under way"),
        (2, {"event": "dance"}, "there is no such event"),
    ],
)
def test_a_file_that_was_edited_is_refused(tmp_path: Path, line: int, change: dict, said: str) -> None:
    session = session_in(tmp_path)
    session.draw()
    session.judge("success")
    close(session)
    lines = (tmp_path / NAME).read_text().splitlines()
    lines[line] = json.dumps(json.loads(lines[line]) | change)
    (tmp_path / NAME).write_text("\n".join(lines) + "\n")
    with pytest.raises(UserError, match=said):
        session_in(tmp_path)


def test_damage_in_the_middle_and_a_second_program_are_refused(tmp_path: Path) -> None:
    session = session_in(tmp_path)
    session.draw()
    with pytest.raises(UserError, match="in use by another"):
        Journal(tmp_path / NAME, patience=0.0)
    close(session)
    path = tmp_path / NAME
    path.write_bytes(path.read_bytes().replace(b'"draw"', b'"draw', 1))
    with pytest.raises(UserError, match="line 2 cannot be read"):
        session_in(tmp_path)


def test_a_void_trial_needs_a_reason_and_nothing_is_written_without(tmp_path: Path) -> None:
    session = session_in(tmp_path)
    session.draw()
    before = (tmp_path / NAME).read_bytes()
    for outcome, reason, said in (("void", "  ", "needs a reason"), ("", "", "is no outcome")):
        with pytest.raises(UserError, match=said):
            session.judge(outcome, reason)
    assert (tmp_path / NAME).read_bytes() == before
    close(session)


# --- what is hidden ---------------------------------------------------------------------------------------------------


def test_the_file_of_a_blind_session_does_not_say_which_policy_a_trial_is_of(tmp_path: Path) -> None:
    session, chance = session_in(tmp_path / "blind"), random.Random(0)
    for _ in range(5):
        step(session, chance, 0.2)
    _, *lines = (tmp_path / "blind" / NAME).read_text().splitlines()
    for policy in session.plan.policies:
        assert not [line for line in lines for word in policy.values() if word in line]
    assert session.hidden
    close(session)
    session = session_in(tmp_path / "open", blind=False)
    name = session.plan.policies[session.draw().policy]["name"]
    assert name in (tmp_path / "open" / NAME).read_text().splitlines()[1]
    assert not session.hidden
    close(session)


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=40), st.text(max_size=40), st.integers(0, 2), st.sampled_from(["name", "path", "digest"]))
def test_texts_of_others_lose_what_tells_the_policy(before: str, after: str, number: int, what: str) -> None:
    found = [policy.about for policy in policies(Path("/data/of me"))]
    secret = found[number][what]
    hidden = Curtain(found).hide(f"{before} {secret} {after}")
    words = {value for policy in found for value in policy.values()} | {found[number]["digest"][:12]}
    assert not [word for word in words if f" {word} " in f" {hidden} "]
    assert HIDDEN in hidden


def test_the_curtain_leaves_other_words_alone_and_can_be_drawn_back(tmp_path: Path) -> None:
    curtain = Curtain([policy.about for policy in policies(tmp_path)])
    assert curtain.hide("a heronry; walruses: policy.safetensors is late") == (
        "a heronry; walruses: policy.safetensors is late"
    )
    assert curtain.hide(f"'{tmp_path}/runs/ibex/resume.pt'") == f"'{HIDDEN}/resume.pt'"
    curtain.drawn = False
    assert curtain.hide("heron") == "heron"


def test_names_are_as_short_as_can_be() -> None:
    paths = [Path(p) for p in ("/r/a/policy.safetensors", "/r/b/policy.safetensors")]
    assert names(paths) == ["a", "b"]
    assert names([*paths, Path("/s/a/policy.safetensors")]) == ["r/a", "r/b", "s/a"]
    assert names([Path("/r/best.safetensors"), Path("/r/last.safetensors")]) == ["best", "last"]


# --- what comes out ---------------------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(SEEDS, st.integers(1, 6), st.floats(0.0, 0.4))
def test_the_results_are_those_of_the_outcomes(seed: int, episodes: int, void: float) -> None:
    with TemporaryDirectory() as folder:
        session, chance = session_in(Path(folder), episodes, 2, seed), random.Random(seed)
        while not session.complete:
            step(session, chance, void)
        found = results.of(session)
        by = {(t.policy, t.start): t.outcome == "success" for t in session.trials if t.counts}
        one, other = ([by[policy, start] for start in range(episodes)] for policy in (0, 1))
        assert [row.rate for row in found.rows] == [wilson(sum(one), episodes), wilson(sum(other), episodes)]
        assert found.differences[0].interval == paired_difference(one, other)
        assert sum(row.void for row in found.rows) == sum(t.outcome == "void" for t in session.trials)
        close(session)


def test_results_are_written_as_table_json_and_picture(tmp_path: Path) -> None:
    session, chance = session_in(tmp_path, 4, 3), random.Random(3)
    while not session.complete:
        step(session, chance, 0.2)
    close(session)
    assert cli.main(["trials", "results", str(tmp_path)]) == 0
    told = json.loads((tmp_path / "results.json").read_text())
    assert told["complete"]
    assert [policy["name"] for policy in told["policies"]] == list(NAMES)
    assert len(told["differences"]) == 3
    assert "walrus minus heron" in (tmp_path / "results.txt").read_text()
    assert (tmp_path / "results.png").read_bytes().startswith(b"\x89PNG")


def test_a_blind_session_gives_results_only_when_it_is_done_or_revealed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    session, chance = session_in(tmp_path, 2, 2), random.Random(0)
    step(session, chance, 0.0)
    close(session)
    assert cli.main(["trials", "results", str(tmp_path)]) == 2
    said = capsys.readouterr()
    assert "blind until the last one" in said.err
    assert not [name for name in NAMES if name in said.err + said.out]
    assert sorted(path.name for path in tmp_path.iterdir()) == [NAME]
    assert cli.main(["trials", "results", str(tmp_path), "--reveal"]) == 0
    assert "blind for the first 1 of 4 trials, then revealed; 0 outcomes came after that" in capsys.readouterr().out
    assert [event["event"] for event in read(tmp_path / NAME)[0]][-1] == "reveal"
    assert cli.main(["trials", "results", str(tmp_path / "nothing")]) == 2
