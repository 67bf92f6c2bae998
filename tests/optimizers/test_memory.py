"""What a compiled update holds beside the parameters, gradients and state."""

import pytest
from update_memory import ENTRIES, temporary_bytes

from fngrad.optimizers import REGISTRY

# Their loops write in place and share no intermediate array. Others need one: rules
# with norms, and those that use the old and the new value of one moment.
IN_PLACE = (
    *("sgd", "momentum", "rmsprop", "adagrad", "adam", "adamw", "adamax", "amsgrad"),
    *("nadam", "radam", "yogi", "ademamix", "sign_sgd", "signum", "madgrad"),
)


@pytest.mark.parametrize("name", IN_PLACE)
def test_an_update_in_place_holds_no_temporary_arrays(name):
    assert temporary_bytes(REGISTRY[name](0.1)) < ENTRIES * 4
