"""`d2ppo report`: one page that needs nothing else, says the numbers, and survives any run folder."""

from __future__ import annotations

import base64
import json
import re
import shutil
import sys
from dataclasses import asdict
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from d2ppo_core.cli import main
from d2ppo_core.report_making import command_line, differences, duration
from d2ppo_core.report_runs import read_run
from d2ppo_core.statistics import paired_difference, wilson
from d2ppo_core.video import write_png

POLICY, BASELINE = [True] * 18 + [False] * 2, [True] * 8 + [False] * 12


@pytest.fixture(scope="module")
def pretrains(tmp_path_factory: pytest.TempPathFactory, reach_file: Path) -> dict[str, Path]:
    """Two real pre-training runs: with the dispersive loss, and without."""
    folder, argv, result = tmp_path_factory.mktemp("pretrain"), sys.argv, {}
    for mode in ("normalised", "off"):
        result[mode] = folder / f"bc-{mode}"
        arguments = ["experiment=debug", "task=reach", f"data={reach_file}", f"dispersive={mode}", "threads=1"]
        assert main(["pretrain", *arguments, f"run_dir={result[mode]}"]) == 0
    sys.argv = argv  # Hydra's entry sets it
    return result


def finetune_run(path: Path, config: str, *, finished: bool = True) -> Path:
    """A fine-tuning run in the format of rl/finetune.py."""
    path.mkdir(parents=True)
    (path / "config.yaml").write_text(config)
    lines = []
    for i in range(1, 9):
        rate = wilson(2 * i, 20)
        lines.append({
            "step": i, "rollout/success_rate": rate.value, "rollout/success_low": rate.low,
            "rollout/success_high": rate.high, "rollout/episodes": 0 if i == 1 else 20,
            "rollout/control_steps": 128 * i, "rollout/explained_variance": 0.1 * i,
            "ppo/kl": 0.01 * i, "ppo/clip_fraction": 0.1, "seconds": 2.0 * i,
        })
    lines[-1] |= {"evaluation/success_rate": 0.9, "evaluation/success_low": 0.7, "evaluation/success_high": 0.97}
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (path / "metrics.jsonl").write_text(text if finished else text + '{"step": 9, "rollout/succ')
    if finished:
        policy = str(path / "policy.safetensors")
        summary = {"command": "finetune", "seconds": 4000.0, "policy": policy, "iterations": 8, "control_steps": 1024}
        (path / "summary.json").write_text(json.dumps(summary))
    return path


def evaluate_run(
    path: Path, policy: Path, baseline: Path, outcomes: tuple[list[bool], list[bool]] = (POLICY, BASELINE)
) -> Path:
    """An evaluation in the format of evaluate.py, with a film whose MP4 is only a shell."""
    path.mkdir(parents=True)
    seeds = list(range(1_000_000, 1_000_000 + len(outcomes[0])))
    entries = {
        role: {"checkpoint": str(run / "policy.safetensors"), "digest": "0" * 64, "seeds": seeds, "success": success,
               "reward": [0.0] * len(seeds), "control_steps": [40] * len(seeds)}
        for (role, run), success in zip((("policy", policy), ("baseline", baseline)), outcomes, strict=True)
    }
    (path / "evaluation.json").write_text(json.dumps(entries))
    rates = {role: {"success_rate": asdict(wilson(sum(e["success"]), len(seeds)))} for role, e in entries.items()}
    protocol = {"success": "any_step", "stochastic": False, "seed": 7, "max_episode_steps": 40}
    summary = {"command": "evaluate", "seconds": 3.5, **rates, "protocol": protocol}
    (path / "summary.json").write_text(json.dumps(summary))
    (path / "config.yaml").write_text("seed: 7\n")
    (path / "videos").mkdir()
    write_png(path / "videos" / "policy-1000000-success.png", np.full((4, 32, 3), 128, np.uint8))
    (path / "videos" / "policy-1000000-success.mp4").write_bytes(b"\0\0\0\x18ftypisom moov")
    return path


@pytest.fixture
def runs(tmp_path: Path, pretrains: dict[str, Path]) -> list[Path]:
    """A whole project: demonstrations, two pre-trainings, a fine-tuning, an evaluation."""
    demos = tmp_path / "demos"
    demos.mkdir()
    acceptance = {"left": {"tried": 30, "kept": 24}, "right": {"tried": 20, "kept": 16}}
    summary = {"command": "demos", "kept": 40, "tried": 50, "acceptance": acceptance, "mean_steps": 31.5}
    (demos / "summary.json").write_text(json.dumps(summary))
    tuned = finetune_run(tmp_path / "ppo", (pretrains["normalised"] / "config.yaml").read_text())
    return [demos, *pretrains.values(), tuned, evaluate_run(tmp_path / "judged", tuned, pretrains["normalised"])]


def report(out: Path, *folders: Path) -> str:
    """Run the command; the page."""
    assert main(["report", *map(str, folders), "--run-dir", str(out)]) == 0
    return (out / "report.html").read_text()


class References(HTMLParser):
    """Every address that a page refers to, and every element."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.tags: set[str] = set()
        self.ids: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        referring = ("src", "href", "poster", "data", "srcset", "xlink:href", "action")
        self.addresses += [v or "" for k, v in attrs if k in referring]
        self.ids += [v or "" for k, v in attrs if k == "id"]


def test_page_is_self_contained_and_complete(
    tmp_path: Path, runs: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    page = report(tmp_path / "out", *runs)
    assert capsys.readouterr().out.splitlines()[-1] == str(tmp_path / "out" / "summary.json")
    assert not re.search(r"https?://|@import|url\((?!#)", page)
    found = References(page)
    inside = ("#", "data:image/png;base64,", "data:video/mp4;base64,")
    assert found.addresses and all(address.startswith(inside) for address in found.addresses)
    assert len(found.ids) == len(set(found.ids))
    assert not found.tags & {"script", "link", "iframe", "object", "embed"}
    titles = re.findall(r"<h2>(.*?)</h2>", page)
    assert titles == [
        "Success", "Learning curves", "Features during pre-training", "Films", "Demonstrations", "How it was made",
    ]
    assert page.count("<svg") == page.count("</svg>") == 5
    assert page.count("<figcaption>") == 6
    assert "#0072b2" not in re.sub(r"<style>.*?</style>", "", page, flags=re.S)  # the theme decides the colours
    assert (tmp_path / "out" / "result.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["report.html", "result.png", "summary.json"]


def test_page_says_the_numbers(tmp_path: Path, runs: list[Path]) -> None:
    page = report(tmp_path / "out", *runs)
    rate, difference = wilson(18, 20), paired_difference(BASELINE, POLICY)
    assert f"{rate.value:.3f} [{rate.low:.3f}, {rate.high:.3f}]" in page and "18/20" in page and "8/20" in page
    assert f"+{difference.value:.3f} [+{difference.low:.3f}, +{difference.high:.3f}]" in page
    assert "ppo (fine-tuned) minus bc-normalised (pre-trained)" in page
    assert "excludes zero: this policy is better" in page
    for text in ("1000000–1000019", "at most 40 control steps", "success at any control step", "action seed 7",
                 "exploration noise", "40 of 50 episodes", "1 h 06 min", "seed 1000000", "train.batch=32"):
        assert text in page, text
    digest = json.loads((runs[1] / "summary.json").read_text())["dataset_digest"]
    assert digest in page
    assert base64.b64encode(b"\0\0\0\x18ftypisom moov").decode() in page
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert [p["successes"] for p in summary["policies"]] == [8, 18]
    assert summary["differences"][0]["low"] == pytest.approx(difference.low)


@pytest.mark.parametrize(("outcomes", "words"), [
    ((POLICY, POLICY), "includes zero"), ((BASELINE, POLICY), "excludes zero: this policy is worse"),
])
def test_difference_in_words(tmp_path: Path, outcomes: tuple[list[bool], list[bool]], words: str) -> None:
    run = evaluate_run(tmp_path / "run", tmp_path / "a", tmp_path / "b", outcomes)
    assert words in report(tmp_path / "out", run)


def test_pretraining_runs_are_overlaid_and_named(tmp_path: Path, pretrains: dict[str, Path]) -> None:
    page = report(tmp_path / "out", *pretrains.values())
    assert page.count("bc-normalised: normalised infonce_l2, early layer, λ = 0.5") == 2  # a legend in each figure
    assert page.count("bc-off: no dispersive loss") == 2
    assert "Success</h2>" not in page and "Films</h2>" not in page


def test_page_is_reproducible(tmp_path: Path, runs: list[Path]) -> None:
    assert report(tmp_path / "one", *runs[-2:]) == report(tmp_path / "two", *runs[-2:])
    assert (tmp_path / "one" / "result.png").read_bytes() == (tmp_path / "two" / "result.png").read_bytes()


def test_hostile_names_are_escaped(tmp_path: Path, pretrains: dict[str, Path]) -> None:
    name = '_<script>alert(1)<\u2215script>"\'&$x^2$\x01'
    hostile = tmp_path / name
    shutil.copytree(pretrains["off"], hostile)
    config = (hostile / "config.yaml").read_text()
    (hostile / "config.yaml").write_text(config.replace("name: reach", "name: <img src=x onerror=alert(1)>"))
    judged = evaluate_run(tmp_path / "<b>", hostile, hostile)
    shutil.copy(judged / "videos" / "policy-1000000-success.png", judged / "videos" / "<i>-3-failure.png")
    tuned = finetune_run(tmp_path / "<script>tuned", "seed: '<script>'\n")
    page = report(tmp_path / "out", hostile, judged, tuned)
    found = References(page)
    assert not found.tags & {"script", "b", "i"} and "<img src=x" not in page
    assert "&lt;script&gt;" in page and "\x01" not in page


def test_unfinished_runs_are_shown_by_their_metrics(tmp_path: Path, pretrains: dict[str, Path]) -> None:
    stopped = tmp_path / "stopped"
    shutil.copytree(pretrains["normalised"], stopped)
    (stopped / "summary.json").unlink()
    tuning = finetune_run(tmp_path / "tuning", "seed: 1\n", finished=False)
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "config.yaml").write_text("seed: 2\n")
    page = report(tmp_path / "out", stopped, tuning, empty)
    assert "stopped (pretrain, unfinished at step 20)" in page
    assert "tuning (finetune, unfinished at iteration 8)" in page
    assert "empty (a run, unfinished)" in page
    assert "Success while fine-tuning" in page and "Effective rank" in page


DAMAGE = {
    "summary": ("summary.json", '{"command": "pre'), "list": ("summary.json", "[]"),
    "other": ("summary.json", '{"command": "x"}'),
    "deep": ("summary.json", "[" * 100_000), "middle": ("metrics.jsonl", '{"step": 1}\n{"st\n{"step": 3}\n'),
    "yaml": ("config.yaml", "a: [1"), "alias": ("config.yaml", "a: &b [1]\nc: *b\n"), "text": ("config.yaml", "\x00"),
    "outcomes": ("evaluation.json", '{"policy": {"checkpoint": "x", "seeds": [1, 2], "success": [true]}}'),
    "types": ("evaluation.json", '{"policy": {"checkpoint": "x", "seeds": [1], "success": ["<b>"]}}'),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_refused_and_nothing_written(
    tmp_path: Path, pretrains: dict[str, Path], damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run, (name, text) = tmp_path / "run", DAMAGE[damage]
    shutil.copytree(pretrains["off"], run)
    (run / name).write_text(text)
    assert main(["report", str(pretrains["normalised"]), str(run), "--run-dir", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err.strip()
    assert str(run) in error and "\n" not in error
    assert not (tmp_path / "out").exists()


def test_wrong_folders_are_refused(tmp_path: Path, pretrains: dict[str, Path]) -> None:
    run, out = str(pretrains["off"]), ["--run-dir", str(tmp_path / "out")]
    (tmp_path / "plain").mkdir()
    assert main(["report", str(tmp_path / "nowhere"), *out]) == 2
    assert main(["report", str(tmp_path / "plain"), *out]) == 2
    before = (pretrains["off"] / "summary.json").read_bytes()
    assert main(["report", run, "--run-dir", run]) == 2  # a report must not overwrite a run
    assert (pretrains["off"] / "summary.json").read_bytes() == before
    assert not (tmp_path / "out").exists()


def test_a_link_among_the_films_does_not_leak(tmp_path: Path) -> None:
    run, secret = evaluate_run(tmp_path / "run", tmp_path / "a", tmp_path / "b"), tmp_path / "secret"
    secret.write_text("password")
    (run / "videos" / "policy-5-failure.png").symlink_to(secret)
    page = report(tmp_path / "out", run)
    assert base64.b64encode(b"password").decode() not in page
    assert "videos/policy-5-failure.png is not shown" in page


def test_second_report_replaces_the_first(tmp_path: Path, runs: list[Path]) -> None:
    report(tmp_path / "out", runs[-1])
    assert (tmp_path / "out" / "result.png").exists()
    report(tmp_path / "out", runs[0])  # demonstrations alone: no result figure, and none left of before
    assert not (tmp_path / "out" / "result.png").exists()


def test_equal_names_are_told_apart(tmp_path: Path) -> None:
    folders = [finetune_run(tmp_path / parent / "run", "seed: 0\n") for parent in "ab"]
    page = report(tmp_path / "out", *folders, folders[0])
    assert "a/run (finetune" in page and "b/run (finetune" in page
    assert len(json.loads((tmp_path / "out" / "summary.json").read_text())["runs"]) == 2


def test_command_line_makes_the_same_run(pretrains: dict[str, Path], reach_file: Path) -> None:
    run = read_run(pretrains["off"], "off")
    changed = differences(run)
    line = command_line(run, changed)
    assert line.startswith("d2ppo pretrain task=reach ") and f"data={reach_file}" in line
    assert "dispersive.mode=off" in line and "'policy.network.hidden=[32,32,32]'" in line
    assert not any(name.startswith(("task.", "run_dir", "algorithm")) for name, _, _ in changed)


def test_duration() -> None:
    assert [duration(s) for s in (0.25, 61, 3599.9, 4000)] == ["0.2 s", "1 min 01 s", "59 min 59 s", "1 h 06 min"]
