"""Studies: their file, their runs, kill and resume, failures, budgets, and reports of a part of the results."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from d2ppo_core import cli
from d2ppo_core.errors import UserError
from d2ppo_core.study.command import SHIPPED, shipped
from d2ppo_core.study.plan import Plan
from d2ppo_core.study.runner import Progress, Runner
from d2ppo_core.study.schema import read_study
from d2ppo_core.study.store import ROW_TIMES, Store
from support import command

CELL = "normalised-infonce_l2-early-0.1"


def values(**changes: object) -> dict:
    return {
        "name": "tiny",
        "kind": "primary",
        "question": "Does it <b>work</b>?",
        "layer_rule": "early",
        "budget": {"cpu_hours": 0.1, "measured": "guessed"},
        "primary": {"cell": CELL, "statement": "dispersion minus none"},
        "seeds": [4, 5],
        "evaluation": {"episodes": 6, "first_seed": 2_000_000},
        "overrides": ["experiment=debug", "device=cpu"],
        "tasks": {"reach": {"steps": 30}},
        "grids": {"main": {"layers": ["early"], "weights": [0.1]}},
        **changes,
    }


def written(folder: Path, **changes: object) -> Path:
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(values(**changes)))
    return path


def plan_of(folder: Path, **changes: object) -> Plan:
    file = written(folder, **changes)
    return Plan(read_study(file)[0], file, folder / "study")


# --- the file -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"question": ""}, "question"),
        ({"colour": "red"}, "colour"),
        ({"seeds": [1, 1]}, "names a seed twice"),
        ({"primary": None}, "states `primary`"),
        ({"grids": {"main": {"layers": ["first"], "weights": [0.1]}}}, "layers has 'first'"),
        ({"grids": {"main": {"layers": ["early"], "weights": [0.0]}}}, "weights"),
        ({"grids": {"main": {"layers": ["early"], "weights": [0.1], "factors": ["x"]}}}, "no factor x"),
        ({"grids": {"main": {"layers": ["early"], "weights": [0.1], "seeds": [9]}}}, "no seed 9"),
        ({"overrides": ["seed=3"]}, "the study itself decides"),
        ({"overrides": ["dispersive.layer=mid"]}, "the study itself decides"),
        ({"overrides": ["train.steps=${oc.env:HOME}"]}, "no plain option=value"),
        ({"overrides": ["+hydra.run.dir=x"]}, "no plain option=value"),
        ({"tasks": {"../up": {}}}, "tasks"),
        ({"evaluation": {"episodes": 5, "first_seed": 3}}, "first_seed"),
    ],
)
def test_a_wrong_file_is_refused_in_a_sentence(changes: dict, words: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=words) as error:
        read_study(written(tmp_path, **changes))
    assert "tiny.yaml" in str(error.value)


def test_no_yaml_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("a: [1")
    with pytest.raises(UserError, match="no readable YAML"):
        read_study(tmp_path / "a.yaml")
    (tmp_path / "b.yaml").write_text("a: &x [1]\nb: *x\n")
    with pytest.raises(UserError, match="aliases"):
        read_study(tmp_path / "b.yaml")
    with pytest.raises(UserError, match="no such file"):
        read_study(tmp_path / "c.yaml")


@pytest.mark.parametrize("name", shipped())
def test_shipped_studies_are_valid(name: str) -> None:
    study, _ = read_study(SHIPPED / f"{name}.yaml")
    plan = Plan(study, SHIPPED / f"{name}.yaml", Path("runs"))
    assert study.name == name
    assert len({run.name for run in plan.runs}) == len(plan.runs) > 0
    if study.primary:
        assert {run.task for run in plan.runs if run.cell.name == study.primary.cell} == set(study.tasks)
    if study.finetune:
        assert {run.cell.name for run in plan.runs if run.finetuned} == {"none", *study.finetune.cells}


# --- runs and commands ----------------------------------------------------------------------------------------------


def test_every_cell_has_its_baseline(tmp_path: Path) -> None:
    factors = {"anneal": ["dispersive.anneal=true"], "few": ["demos.episodes=3"]}
    main = {"layers": ["early", "mid"], "weights": [0.1], "modes": ["normalised", "paper"], "variants": ["covariance"]}
    plan = plan_of(
        tmp_path,
        factors=factors,
        grids={
            "main": main,
            "anneal": {"layers": ["early"], "weights": [0.3], "factors": ["anneal"], "seeds": [5]},
            "few": {"layers": ["early"], "weights": [0.1], "factors": ["few", "anneal"]},
        },
    )
    names = [run.name.removeprefix("reach/") for run in plan.runs if run.seed == 5]
    assert sorted(names) == sorted(
        f"{cell}/seed=5"
        for cell in (
            *("none", "none+few", "normalised-covariance-early-0.1", "normalised-covariance-mid-0.1"),
            *("normalised-infonce_l2-early-0.3+anneal", "normalised-infonce_l2-early-0.1+few+anneal"),
        )
    )
    assert [run.seed for run in plan.runs] == sorted(run.seed for run in plan.runs)
    few = next(run for run in plan.runs if run.cell.name.endswith("+few+anneal"))
    assert plan.dataset(few) == "reach+few" and "demos.episodes=3" in plan.demos(few).arguments
    assert "dispersive.anneal=true" not in plan.demos(few).arguments
    assert len(plan.chosen("reach/none*")) == 4 and len(plan.chosen("tiny/reach/none/seed=4")) == 1


def test_cells_of_a_seed_are_evaluated_on_the_same_episodes(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, demonstrations="each_seed", finetune={"cells": [CELL], "seeds": [5]})
    first = {
        (run.seed, stage.name, next(a for a in stage.arguments if a.startswith("evaluation.first_seed")))
        for run in plan.runs
        for stage in plan.stages(run)
        if stage.name.startswith("evaluate")
    }
    assert first == {
        (4, "evaluate", "evaluation.first_seed=2000000"),
        (5, "evaluate", "evaluation.first_seed=2000006"),
        (5, "evaluate-finetuned", "evaluation.first_seed=2000006"),
    }
    assert {plan.dataset(run) for run in plan.runs} == {"reach-seed=4", "reach-seed=5"}
    assert "demos.first_seed=10000" in plan.demos(plan.runs[-1]).arguments


def test_a_typo_is_found_before_anything_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = written(tmp_path, overrides=["experiment=debug", "train.stepz=3"])
    assert cli.main(["study", "run", str(file), "--run-dir", str(tmp_path / "s")]) == 2
    assert "pretrain of reach/none/seed=4 cannot be run: there is no option 'train.stepz'" in capsys.readouterr().err
    file = written(tmp_path, tasks={"reach": {"data": "missing.hdf5"}})
    assert cli.main(["study", "run", str(file), "--run-dir", str(tmp_path / "s")]) == 2
    assert "missing.hdf5" in capsys.readouterr().err
    assert not (tmp_path / "s").exists()


# --- running, with a program that only pretends -----------------------------------------------------------------------

PRETENDER = """
import json, os, pathlib, sys, time
options = dict(a.split("=", 1) for a in sys.argv[3:])
folder, command = pathlib.Path(json.loads(options["run_dir"])), sys.argv[2]
folder.mkdir(parents=True, exist_ok=True)
if os.environ.get("FAIL", "nothing") in str(folder):
    sys.exit("d2ppo: the loss is not finite; lower train.optimiser.lr")
time.sleep(float(os.environ.get("SLOW", "0")))
first, count = int(options.get("evaluation.first_seed", 0)), int(options.get("evaluation.episodes", 1))
good = "none" not in str(folder)
episodes = {"checkpoint": "x", "digest": "", "seeds": list(range(first, first + count)),
            "success": [good or n % 2 == 0 for n in range(count)]}
if command == "evaluate":
    (folder / "evaluation.json").write_text(json.dumps({"policy": episodes}))
lines = [{"step": n, "features/early/effective_rank": 3.0 + n, "features/early/similarity": 0.1,
          "features/early/relative_distance": 1.0, "rollout/success_rate": 0.5, "rollout/episodes": 3,
          "rollout/control_steps": n} for n in range(0, 300, 2)]
(folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\\n" for line in lines))
(folder / "summary.json").write_text(json.dumps({"command": command, "seconds": 1.0}))
"""


def pretend(plan: Plan, folder: Path, jobs: int = 2, budget: float | None = None, retry: bool = False) -> Store:
    """Run a study with the pretender in the place of our commands."""
    (folder / "pretender.py").write_text(PRETENDER)
    store = Store(plan.folder)
    store.open(plan.study, plan.file, read_study(plan.file)[1])
    runner, progress = Runner(plan, store, jobs, budget, retry), Progress(plan.runs)
    runner.program = [sys.executable, str(folder / "pretender.py")]
    for _ in runner.run(plan.runs, progress):
        assert len(progress.active) <= jobs
    store.close()
    return store


def test_a_failing_run_is_recorded_and_the_rest_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = plan_of(tmp_path)
    monkeypatch.setenv("FAIL", f"{CELL}/seed=4")
    rows = {row["run"]: row for row in pretend(plan, tmp_path).rows()}
    bad = rows.pop(f"reach/{CELL}/seed=4")
    assert bad["status"] == "failed" and bad["reason"].startswith("pretrain: the loss is not finite")
    assert len(rows) == 3 and all(row["status"] == "ok" for row in rows.values())
    before = (plan.folder / "results.jsonl").read_bytes()
    pretend(plan, tmp_path)  # nothing is left to do, and a failed run is not repeated unasked
    assert (plan.folder / "results.jsonl").read_bytes() == before
    monkeypatch.setenv("FAIL", "nothing")
    assert {row["status"] for row in pretend(plan, tmp_path, retry=True).rows()} == {"ok"}


def test_failed_demonstrations_fail_their_runs_with_that_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAIL", "demos/reach")
    rows = pretend(plan_of(tmp_path), tmp_path).rows()
    assert len(rows) == 4
    assert all("its demonstrations failed: demos: the loss" in row["reason"] for row in rows)


def test_a_spent_budget_starts_nothing_more(tmp_path: Path) -> None:
    plan = plan_of(tmp_path)
    store = pretend(plan, tmp_path, jobs=1, budget=1e-9)
    assert store.rows() == []
    assert len(pretend(plan, tmp_path).rows()) == 4
    assert store.cost()[0] > 0


def test_a_changed_file_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pretend(plan_of(tmp_path), tmp_path)
    file = written(tmp_path, seeds=[4, 5, 6])
    assert cli.main(["study", "run", str(file), "--run-dir", str(tmp_path / "study")]) == 2
    assert "has changed since the study" in capsys.readouterr().err
    (tmp_path / "study" / "study.yaml").write_text(file.read_text())
    assert cli.main(["study", "report", str(tmp_path / "study")]) == 2
    assert "has changed since the study" in capsys.readouterr().err


def test_two_runners_exclude_one_another_and_torn_lines_are_dropped(tmp_path: Path) -> None:
    plan = plan_of(tmp_path)
    store = pretend(plan, tmp_path)
    rows = store.rows()
    with open(store.results, "ab") as file:
        file.write(b'{"run": "reach/no')  # a kill in the middle of a line
    assert store.rows() == rows
    study, digest = read_study(plan.file)
    store.open(study, plan.file, digest)
    assert store.results.read_bytes().endswith(b"\n")
    with pytest.raises(UserError, match="another `d2ppo study run` works"):
        Store(plan.folder).open(study, plan.file, digest)
    store.close()
    with open(store.results, "ab") as file:
        file.write(b'nonsense\n{"run": "a"}\n')
    with pytest.raises(UserError, match="damaged"):
        store.rows()


def test_a_report_of_a_part_of_the_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAIL", f"{CELL}/seed=5")
    plan = plan_of(tmp_path, finetune={"cells": [CELL], "seeds": [4]}, question="Does it <b>work</b>?")
    pretend(plan, tmp_path)
    assert cli.main(["study", "report", str(plan.folder)]) == 0
    out = plan.folder / "report"
    page = (out / "report.html").read_text()
    assert "Partial" not in page and "1 failed" in page and "not decided yet" in page
    assert "<b>" not in page and "Does it &lt;b&gt;work" in page
    assert "http://" not in page and "https://" not in page and "<script" not in page
    with open(out / "comparisons.csv", newline="") as file:
        lines = list(csv.DictReader(file))
    assert [(line["family"], line["policy"], line["difference_value"]) for line in lines] == [
        ("primary", "pretrained", "0.5"),
        ("exploratory", "finetuned", "0.5"),
    ]
    pictures = {path.stem for path in out.glob("*.png")}
    assert pictures == {"success-reach", "differences-reach", "features-reach-early-normalised", "finetuning"}
    with open(out / "finetuning.csv", newline="") as file:
        assert [(line["cell"], line["training_seeds"]) for line in csv.DictReader(file)] == [(CELL, "1")]
    assert "who gets there sooner" in page
    with open(out / "runs.csv", newline="") as file:
        assert [line["status"] for line in csv.DictReader(file)].count("failed") == 1
    empty = Store(tmp_path / "empty")
    empty.open(plan.study, plan.file, read_study(plan.file)[1])
    empty.close()
    assert cli.main(["study", "report", str(tmp_path / "empty")]) == 0  # nothing has run yet


# --- the real commands ------------------------------------------------------------------------------------------------


def table(folder: Path) -> list[dict]:
    """The results, without what the clock says."""
    rows = [{k: v for k, v in row.items() if k not in ROW_TIMES} for row in Store(folder).rows()]
    return sorted(rows, key=lambda row: (row["run"], row["policy"]))


CELL_RUN = f"reach/{CELL}"  # one run, two commands: starting Python is most of the time


def start(file: Path, folder: Path) -> subprocess.Popen[bytes]:
    words = command("study", "run", str(file), "--run-dir", str(folder), "--only", CELL_RUN)
    return subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def test_a_study_killed_and_resumed_gives_the_same_table(reach_file: Path, tmp_path: Path) -> None:
    """Killed with SIGKILL while pre-training: its commands die with it, and go on from their resume files."""
    file = written(
        tmp_path,
        seeds=[4],
        tasks={"reach": {"data": os.path.relpath(reach_file, tmp_path)}},
        overrides=[
            *("experiment=debug", "device=cpu", "train.steps=250", "train.save_every=10", "train.log_every=50"),
            "train.validate_every=0",
        ],
    )
    whole, killed = start(file, tmp_path / "whole run"), start(file, tmp_path / "killed")
    resume = tmp_path / "killed" / "runs" / "reach" / CELL / "seed=4" / "pretrain" / "resume.pt"
    while killed.poll() is None and not resume.exists():
        time.sleep(0.02)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert killed.returncode == -signal.SIGKILL
    assert not (resume.parent / "summary.json").exists(), "it was killed too late to test anything"
    again = start(file, tmp_path / "killed")
    for process in (whole, again):
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors.decode()
    first, second = table(tmp_path / "whole run"), table(tmp_path / "killed")
    assert json.dumps(first) == json.dumps(second)
    assert len(first) == 1 and all(row["status"] == "ok" and row["features"] for row in first)
