"""`d2ppo bench`: one command whose sub-commands come from several houses."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from d2ppo_core import cli
from d2ppo_core.bench import pretraining
from d2ppo_core.bench.slices import ratio, take_turns


def test_help_lists_what_is_installed(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["bench", "--help"]) == 0
    printed = capsys.readouterr().out
    assert "  sim " in printed and "control steps per second" in printed


@pytest.mark.parametrize("arguments", [[], ["nothing"]])
def test_an_unknown_name_is_answered_in_one_sentence(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["bench", *arguments]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "choose one of" in said and "sim" in said


def test_a_benchmark_that_cannot_be_imported_says_why(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Broken:
        name = "broken"

        def load(self) -> None:
            raise ImportError("No module named 'missing'")

    monkeypatch.setattr(cli, "entry_points", lambda group: [Broken()])
    assert cli.registered("d2ppo.benches", "d2ppo bench")["broken"].summary.startswith("not available")
    with pytest.raises(cli.UserError, match="`d2ppo bench broken` needs a part that is not installed"):
        cli.registered("d2ppo.benches", "d2ppo bench")["broken"].run([])


def test_learn_measures_every_part(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A moment of each, through the product's own code: rates, ratios, and what they were measured on."""
    out = tmp_path / "learn.json"
    quick = ["--seconds", "0.01", "--chunks", "1", "--threads", "1", "--device", "cpu", "--json", str(out)]
    assert cli.main(["bench", "learn", *quick]) == 0
    printed, report = capsys.readouterr().out, json.loads(out.read_text())
    assert "pre-training steps per second" in printed and "pairs per second" in printed and "load" in printed
    machine, found = report["machine"], report["devices"]["cpu"]
    assert machine["versions"]["torch"] and len(machine["load_before"]) == len(machine["load_after"]) == 3
    assert report["threads"] == 1
    for network in ("512x3", "768x3"):
        rows = found["pretrain"][network]
        rounded = {f"bf16: {name}" for name in pretraining.ROUNDED}
        assert set(rows) == set(pretraining.forms()) | rounded
        assert rows["none"]["times_no_dispersion"] == 1
        assert rows["paper infonce_l2"]["times_no_dispersion"] > 3  # K forward passes
    ppo = found["ppo"]
    assert ppo["measured"]["pairs"] == 500 and ppo["update_pairs_per_second"] > 0
    assert ppo["iteration_seconds_estimated"] == pytest.approx(
        ppo["of_which_acting"] + ppo["of_which_update"], abs=0.02
    )
    assert len(found["act"]) == 6
    assert all(0 < row["best_ms"] <= row["median_ms"] <= row["percentile_95_ms"] for row in found["act"].values())


def test_learn_measures_one_part_alone(tmp_path: Path) -> None:
    out = tmp_path / "learn.json"
    assert (
        cli.main(["bench", "learn", "--only", "act", "--seconds", "0.01", "--device", "cpu", "--json", str(out)]) == 0
    )
    assert set(json.loads(out.read_text())["devices"]["cpu"]) == {"name", "act"}


@pytest.mark.parametrize("wrong", [["--seconds", "0"], ["--threads", "-1"], ["--chunks", "0"], ["--only", "sim"]])
def test_wrong_options_of_learn_are_explained(wrong: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["bench", "learn", *wrong]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_rivals_take_turns_and_a_slow_one_fewer() -> None:
    """Each has its own time; the ratio is of turns that both had."""
    order: list[str] = []

    def rival(name: str, seconds: float) -> Callable[[], int]:
        def work() -> int:
            order.append(name)
            time.sleep(seconds)
            return 1

        return work

    clocks = take_turns({"quick": rival("quick", 0.01), "slow": rival("slow", 0.5)}, 0.5)
    assert order[:2] == ["quick", "slow"]  # the warm-up
    assert len(clocks["quick"].slices) == 2 and len(clocks["slow"].slices) == 1
    assert clocks["quick"].units == order.count("quick") - 1
    assert 15 < ratio(clocks, "slow", "quick") < 60
    assert ratio(clocks, "quick", "quick") == 1
