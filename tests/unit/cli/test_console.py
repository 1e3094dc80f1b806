"""Talk goes to stderr and falls silent with --quiet; results go to stdout; CI and pipes are no terminals."""

from __future__ import annotations

import pytest

from bevkd_deploy.cli.console import Output


def test_talk_and_results_go_to_their_streams(capsys: pytest.CaptureFixture[str]) -> None:
    output = Output()
    output.talk.print("talk")
    output.results.print("result")
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("result\n", "talk\n")


def test_quiet_silences_talk_alone(capsys: pytest.CaptureFixture[str]) -> None:
    output = Output(quiet=True)
    output.talk.print("talk")
    output.results.print("result")
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("result\n", "")


def test_ci_is_no_terminal_even_where_one_is_forced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.delenv("CI", raising=False)
    assert Output().talk.is_terminal
    monkeypatch.setenv("CI", "true")
    assert not Output().talk.is_terminal


def test_no_color_is_honoured_on_a_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("NO_COLOR", "1")
    Output().results.print("[red]warm[/red]")
    assert "\x1b[31m" not in capsys.readouterr().out


def test_a_long_line_is_not_folded_outside_a_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    Output().talk.print("word " * 100)
    assert capsys.readouterr().err.count("\n") == 1
