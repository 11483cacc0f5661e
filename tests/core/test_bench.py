"""`d2ppo bench`: one command whose sub-commands come from several houses."""

from __future__ import annotations

import pytest

from d2ppo_core import cli


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
