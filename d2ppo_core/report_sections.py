"""What a report says, section by section, in the order of the page. A section without material is empty."""

from __future__ import annotations

import base64
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from . import report_figures as draw
from .report_page import Html, details, element, figure, join, table
from .report_runs import Film, Policy, Run, number
from .statistics import Interval

RULES = {"any_step": "success at any control step", "full_chunk": "success at every step of some chunk"}


def interval(value: Interval, sign: bool = False) -> str:
    """0.93 [0.88, 0.96]"""
    form = "{:+.3f}" if sign else "{:.3f}"
    return f"{form} [{form}, {form}]".format(value.value, value.low, value.high).replace("-", "\u2212")


def of_command(runs: Sequence[Run], command: str) -> list[Run]:
    """The runs of one command, in the order given."""
    return [run for run in runs if run.command == command]


def policy_label(policy: Policy, runs: Sequence[Run]) -> str:
    """The run that made the policy, by its folder; the file too where it is not the final one."""
    path = Path(policy.checkpoint)
    made_by = next((run for run in runs if str(run.path) == os.path.normpath(path.parent)), None)
    name = made_by.name if made_by else path.parent.name or str(path)
    stage = {"pretrain": " (pre-trained)", "finetune": " (fine-tuned)"}.get(made_by.command if made_by else "", "")
    return name + ("" if path.stem == "policy" else f"/{path.stem}") + stage


def evaluated(runs: Sequence[Run]) -> list[tuple[str, Run, str]]:
    """(label, run, role) of every evaluated policy, the baseline above its policy; a repeated result appears once."""
    found: dict[tuple[Any, ...], tuple[Run, Policy]] = {}
    for run in runs:
        for role in sorted(run.policies):
            policy = run.policies[role]
            same = (policy.digest, tuple(policy.seeds), tuple(policy.success), protocol(run))
            found.setdefault(same, (run, policy))
    names = [policy_label(policy, runs) for _, policy in found.values()]
    return [
        (name if names.count(name) == 1 else f"{name}, {run.name}", run, policy.role)
        for name, (run, policy) in zip(names, found.values(), strict=True)
    ]


# --- 1. success ---------------------------------------------------------------------------------------------------


def success(runs: Sequence[Run], figures: Figures) -> Html:
    """Table, figure, and the paired difference in words."""
    rows = evaluated(runs)
    if not rows:
        return Html("")
    parts = [element("p", sentence, "lead") for sentence in differences(runs)]
    parts.append(
        figure(
            figures.svg(draw.draw_success(rows), 0.9 + 0.42 * len(rows)),
            "Each mark is the share of evaluation episodes that succeeded, each bar its 95 % interval.",
        )
    )
    parts.append(
        table(
            ("policy", "success rate [95 %]", "successes", "seeds", "protocol"),
            [_success_row(run.policies[role], run, runs) for _, run, role in rows],
            numbers=(1, 2),
        )
    )
    note = (
        "Intervals of a rate are Wilson's; those of a difference are paired by seed (Agresti and Min 2005). They cover "
        "which episodes were drawn, not which training seed: two methods need several trained policies each."
    )
    parts.append(element("p", note, "muted"))
    return join(parts)


def _success_row(policy: Policy, run: Run, runs: Sequence[Run]) -> tuple[Any, ...]:
    seeds, count = policy.seeds, len(policy.seeds)
    whole = seeds == list(range(seeds[0], seeds[0] + count))
    return (
        policy_label(policy, runs),
        interval(policy.rate),
        f"{sum(policy.success)}/{count}",
        f"{seeds[0]}–{seeds[-1]}" if whole else f"{count} seeds from {min(seeds)} to {max(seeds)}",
        protocol(run),
    )


def protocol(run: Run) -> str:
    """Under which rules the policy was evaluated."""
    said = run.summary.get("protocol")
    if not isinstance(said, dict):
        return "not recorded: the evaluation has not finished"
    rule = RULES.get(str(said.get("success")), f"success rule {said.get('success')}")
    noise = "with exploration noise" if said.get("stochastic") else "without exploration noise"
    world = "; under domain randomisation" if said.get("randomise") else ""
    world += "; under the robot's limits" if said.get("limits") == "robot" else ""
    steps = said.get("max_episode_steps")
    return f"at most {steps} control steps; {rule}; {noise}{world}; action seed {said.get('seed')}"


def differences(runs: Sequence[Run]) -> list[str]:
    """One sentence for each evaluation of two policies on the same seeds."""
    return [_difference(run, runs) for run in runs if run.difference is not None]


def _difference(run: Run, runs: Sequence[Run]) -> str:
    d, policy, baseline = run.difference, run.policies["policy"], run.policies["baseline"]
    assert d is not None
    first, second = policy_label(policy, runs), policy_label(baseline, runs)
    pairs = list(zip(policy.success, baseline.success, strict=True))
    if d.low <= 0 <= d.high:
        words = "The interval includes zero: these episodes do not show that the two policies differ."
    else:
        words = f"The interval excludes zero: this policy is {'better' if d.low > 0 else 'worse'} than that baseline. "
        words += "It is about these two checkpoints; comparing methods needs several training seeds."
    return (
        f"{first} minus {second}: {interval(d, sign=True)} in success rate over {len(policy.seeds)} paired episodes "
        f"({pairs.count((True, False))} seeds only the policy solves, {pairs.count((False, True))} only the baseline). "
        f"{words}"
    )


# --- 2. and 3. curves ---------------------------------------------------------------------------------------------


def dispersion_label(run: Run) -> str:
    """name: mode variant layer λ"""
    mode = run.setting("dispersive.mode")
    if mode is None:
        return run.name
    if mode == "off" or run.setting("dispersive.weight") == 0:
        return f"{run.name}: no dispersive loss"
    values = [str(run.setting(f"dispersive.{key}")) for key in ("variant", "layer", "weight")]
    return f"{run.name}: {mode} {values[0]}, {values[1]} layer, λ = {values[2]}"


def curves(runs: Sequence[Run], figures: Figures) -> Html:
    """Pre-training, then fine-tuning."""
    parts: list[Html] = []
    pretrains = [run for run in of_command(runs, "pretrain") if run.metrics]
    if pretrains:
        parts.append(element("h3", "Pre-training"))
        parts.append(
            figure(
                figures.svg(draw.draw_pretraining(pretrains, [dispersion_label(run) for run in pretrains]), 2.7),
                "A held-out loss that rises while the training loss falls means over-fitting; the error of sampled "
                "actions is the root mean squared distance to the expert's held-out actions, in raw action units.",
            )
        )
    finetunes = [run for run in of_command(runs, "finetune") if run.metrics]
    if finetunes:
        evaluated_too = any("evaluation/success_rate" in line for run in finetunes for line in run.metrics)
        diamonds = " (diamonds, on the evaluation seeds)" if evaluated_too else ""
        parts.append(element("h3", "Fine-tuning"))
        parts.append(
            figure(
                figures.svg(draw.draw_finetuning(finetunes, [run.name for run in finetunes]), 4.6),
                "Above, success of the episodes that finished in each iteration with their Wilson band; these act "
                f"with exploration noise, so they are not comparable with the evaluations{diamonds}; below, how far "
                "each update moved the policy, the share of clipped ratios, and how well the critic predicts the "
                "returns (1: exactly).",
            )
        )
    return join(parts)


def features(runs: Sequence[Run], figures: Figures) -> Html:
    """What pre-training did to the features, runs overlaid."""
    shown = [run for run in of_command(runs, "pretrain") if len(run.curve("dispersive/effective_rank")[0])]
    if not shown:
        return Html("")
    return figure(
        figures.svg(draw.draw_features(shown, [dispersion_label(run) for run in shown]), 4.4),
        "Dispersion at work raises the effective rank and the relative pair distance (√2 for unrelated centred "
        "features); a growing RMS alone only inflates the features, and a gradient norm at zero means that the loss "
        "teaches nothing.",
    )


# --- 4. and 5. films and demonstrations ---------------------------------------------------------------------------


def films(runs: Sequence[Run]) -> Html:
    """A filmstrip for each filmed episode, with the film folded below it."""
    parts = []
    for run in runs:
        shown = [_film(film, run, runs) for film in run.films]
        if shown:
            note = f"From {run.name}. Time runs from left to right; the same seed is the same start."
            parts += [element("p", note, "muted"), *shown]
    return join(parts)


def _film(film: Film, run: Run, runs: Sequence[Run]) -> Html:
    policy = run.policies.get(film.policy)
    name = f"{film.policy}: {policy_label(policy, runs)}" if policy else film.policy
    outcome = "success" if film.success else "failure"
    caption = Html(f"{element('span', name)} · seed {film.seed} · {element('span', outcome, outcome)}")
    alt = join([f"Filmstrip of {name}, seed {film.seed}, {outcome}"])
    strip = f'<img alt="{alt}" src="{_data("image/png", film.strip)}">' if film.strip else ""
    video = ""
    if film.mp4:
        source = _data("video/mp4", film.mp4)
        player = f'<video controls muted loop playsinline preload="metadata" src="{source}"></video>'
        video = details("Play the film", Html(player))
    return Html(f'<figure class="film"><figcaption>{caption}</figcaption>{strip}{video}</figure>')


def _data(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def demonstrations(runs: Sequence[Run], figures: Figures) -> Html:
    """How many attempts became demonstrations, and in which ways the task was done."""
    parts = []
    for run in of_command(runs, "demos"):
        state = run.summary or (run.metrics[-1] if run.metrics else {})
        kept, tried, steps = (number(state.get(key)) for key in ("kept", "tried", "mean_steps"))
        parts.append(element("h3", run.name))
        if kept is not None and tried:
            text = f"{kept:.0f} of {tried:.0f} episodes of the expert succeeded and were kept ({kept / tried:.0%})"
            text += f", {steps:.0f} control steps long on average" if steps else ""
            parts.append(element("p", text + ("." if run.finished else "; the recording has not finished.")))
        modes = _modes(run)
        if modes:
            parts.append(
                figure(
                    figures.svg(draw.draw_modes(modes), 0.9 + 0.3 * len(modes)),
                    "Each frame counts the episodes that tried one way of doing the task, its filled part those kept; "
                    "unequal shares shift the data towards the easier ways.",
                )
            )
    return join(parts)


def _modes(run: Run) -> dict[str, tuple[int, int]]:
    """(kept, tried) of each mode, without what is not a count."""
    acceptance = run.summary.get("acceptance")
    modes = {}
    for mode, entry in acceptance.items() if isinstance(acceptance, dict) else ():
        kept, tried = (number(entry.get(key)) for key in ("kept", "tried")) if isinstance(entry, dict) else (None, None)
        if kept is not None and tried is not None:
            modes[str(mode)] = (int(kept), int(tried))
    return modes


class Figures:
    """Numbers the figures of one page: ids inside an SVG must differ from those of the others."""

    def __init__(self) -> None:
        self.count = 0

    def svg(self, drawing: draw.Draw, height: float) -> str:
        """The next figure, `height` inches high."""
        self.count += 1
        return draw.svg(drawing, height, self.count)
