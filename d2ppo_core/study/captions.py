"""The sentences below the figures and tables of a study's report."""

from __future__ import annotations

CAPTIONS = {
    "success": "Squares: no dispersion. Each bar is Wilson's 95 % interval over the episodes of all training seeds; it "
    "does not cover what another training seed would give, which the dots show.",
    "differences": "Each mark is the mean over training seeds of the difference on the same evaluation episodes, each "
    "bar its 95 % interval (Student), cut off at the edge. Filled: stated before the runs; empty: exploratory.",
    "heat": "Success minus no dispersion, mean over training seeds; blue is better, orange worse.",
    "difficulty": "Dots: training seeds; diamonds: their means; line: least squares over training seeds, with the 95 % "
    "band of its mean.",
    "lambda": "Success minus no dispersion by λ, 95 % intervals over training seeds, cut off at the edge.",
    "features": "Lines: means over training seeds; bands: their range. Distance is relative to the features' scale.",
    "finetuning": "Lines: means over training seeds, with exploration noise; bands: their range.",
}
NOTES = {
    "success": "CPU time counts everything from pre-training to the last evaluation, and no demonstrations.",
    "differences": "The interval over episodes takes all training seeds for one policy: too narrow where seeds differ.",
    "finetuning": "Mean over the whole curve, which says who gets there sooner. Solved episodes are the shorter ones, "
    "so a rollout counts more of them than an evaluation does.",
    "difficulty": "A few tasks are few points: the band covers training seeds, not which tasks were chosen.",
}
