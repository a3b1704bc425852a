"""Sequences on a wire: their times, their order, their end."""

from gateway.protocol.line_controller import Wire
from gateway.protocol.reset import BOTH, IDLE, RESET, STRAP, Baudrate, Starts, parse_sequence

RESTART = parse_sequence("U0,1|W0.1")
TOUCH = parse_sequence("B1200|U1,0|W0.1")


def test_a_sequence_is_played_from_rest_to_rest() -> None:
    wire = Wire(BOTH)
    wire.play(RESTART, Starts.APP, 5.0)
    assert (wire.take(), wire.next_time, wire.is_playing) == ([RESET], 5.1, True)
    wire.advance(5.05)
    assert wire.take() == []
    wire.advance(5.1)
    assert (wire.take(), wire.next_time, wire.is_playing) == ([BOTH], None, False)
    assert wire.take_resets() == [Starts.APP]
    assert wire.take_resets() == []


def test_a_second_sequence_begins_where_the_first_has_ended() -> None:
    wire = Wire(IDLE)
    wire.play(RESTART, Starts.APP, 0.0)
    wire.play(TOUCH, Starts.BOOTLOADER, 0.05)
    wire.advance(0.09)
    assert wire.take() == [RESET]
    wire.advance(0.1)
    assert wire.take() == [IDLE, Baudrate(1200), STRAP]
    wire.advance(0.2)
    assert wire.take() == [IDLE, Baudrate(None)]


def test_a_late_step_makes_no_pause_shorter() -> None:
    wire = Wire(IDLE)
    wire.play(parse_sequence("D1|W0.1|D0|W0.1|R1|W0.1|R0"), Starts.APP, 0.0)
    wire.advance(0.15)
    assert wire.take() == [STRAP, IDLE]
    wire.advance(0.2)
    assert (wire.take(), wire.next_time) == ([], 0.25)
    wire.advance(9.0)
    assert (wire.take(), wire.next_time) == ([RESET], 9.1)


def test_a_pause_at_the_end_is_waited_for() -> None:
    wire = Wire(IDLE)
    wire.play(parse_sequence("D1|D0|W0.5"), Starts.APP, 0.0)
    assert (wire.take(), wire.next_time) == ([STRAP, IDLE], 0.5)
    wire.advance(0.5)
    assert (wire.take(), wire.is_playing) == ([], False)


def test_what_is_shown_already_is_not_shown_again() -> None:
    wire = Wire(IDLE)
    wire.show(IDLE)
    wire.show(BOTH)
    wire.show(BOTH)
    assert (wire.take(), wire.lines) == ([BOTH], BOTH)


def test_stopped_it_rests_at_the_client_s_baud_rate() -> None:
    wire = Wire(IDLE)
    wire.play(TOUCH, Starts.BOOTLOADER, 0.0)
    wire.take()
    wire.stop()
    assert (wire.take(), wire.is_playing) == ([IDLE, Baudrate(None)], False)
    wire.stop()
    assert wire.take() == []


def test_without_a_board_only_the_baud_rate_is_put_back() -> None:
    wire = Wire(BOTH)
    wire.play(TOUCH, Starts.BOOTLOADER, 0.0)
    wire.take()
    wire.board_away()
    assert (wire.take(), wire.lines, wire.is_playing) == ([Baudrate(None)], BOTH, False)
