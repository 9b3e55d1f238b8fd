"""What is put in the place of something else leaves no trace, on instances and modules alike."""

import math
from types import ModuleType

import pytest

from fairchem_gdeq.frozen.patching import NotCalled, installed, replaced, restored, swapped


class Owner:
    value = 1

    def method(self):
        return "own"


def test_a_value_of_the_class_is_covered_on_one_instance_only():
    owner, other = Owner(), Owner()
    with swapped(owner, "value", 2):
        assert (owner.value, other.value, Owner.value) == (2, 1, 1)
    assert owner.value == 1 and vars(owner) == {}


def test_what_is_not_there_is_not_swapped_but_can_be_installed():
    owner = Owner()
    with pytest.raises(AttributeError, match="missing"):
        swapped(owner, "missing", 2)
    with installed(owner, "missing", 2):
        assert owner.missing == 2
    assert vars(owner) == {}


def test_the_old_value_comes_back_after_an_error():
    owner = Owner()
    owner.value = 5
    with pytest.raises(KeyError), swapped(owner, "value", 2):
        raise KeyError
    assert vars(owner) == {"value": 5}


def test_functions_of_instances_and_modules_are_replaced_and_named():
    owner, module = Owner(), ModuleType("somewhere")
    module.sqrt = math.sqrt
    for place, where, name in ((owner, "Owner", "method"), (module, "somewhere", "sqrt")):
        with replaced(place, name, lambda *args: "ours", "nothing"):
            assert getattr(place, name)() == "ours"
        uncalled = replaced(place, name, lambda *args: "ours", "nothing")
        with pytest.raises(NotCalled, match=f"{where}.{name} 0 times"), uncalled:
            pass
        with (
            pytest.raises(NotCalled, match="1 times"),
            replaced(place, name, lambda *args: "ours", "nothing", times=2),
        ):
            getattr(place, name)()
    assert owner.method() == "own" and module.sqrt is math.sqrt


def test_attributes_left_behind_are_taken_back():
    owner = Owner()
    owner.value = 3
    with restored(owner):
        owner.value, owner.more = 4, 5
    assert vars(owner) == {"value": 3}
