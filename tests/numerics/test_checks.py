"""Checks of arguments."""

import pytest

import fngrad.numerics as numerics


def test_a_choice_is_one_of_the_choices():
    numerics.check_choice("variant", "II", ("I", "II"))
    wanted = r"need variant to be one of \('I', 'II'\), got variant='III'"
    with pytest.raises(ValueError, match=wanted):
        numerics.check_choice("variant", "III", ("I", "II"))
