from __future__ import annotations

from bevkd_deploy.report import text


def test_numbers() -> None:
    assert [text.milliseconds(value) for value in (0.1234, 9.8765, 98.765, 987.65)] == [
        "0.123",
        "9.877",
        "98.77",
        "987.6",
    ]
    assert [text.megabytes(value) for value in (0.456, 13.07, 165.2)] == ["0.46", "13.1", "165"]
    assert (text.delta(-0.00061), text.delta(0.0)) == ("-0.0006", "+0.0000")
    assert text.percent(0.021) == "2.1 %"
    assert text.interval((0.99123, 1.5)) == "[0.9912, 1.5]"


def test_absent_is_a_dash() -> None:
    for write in (text.metric, text.delta, text.milliseconds, text.megabytes, text.percent, text.general):
        assert write(None) == "–"
    assert text.interval(None) == "–"


def test_nested_values() -> None:
    assert text.describe({"a": 1, "b": [True, None, 0.25]}) == "a 1, b yes, –, 0.25"
    assert text.flatten({"a": {"b": 1, "c": {"d": 2}}, "e": []}) == [("a.b", 1), ("a.c.d", 2), ("e", [])]
